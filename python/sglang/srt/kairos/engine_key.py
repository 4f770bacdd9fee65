"""The engine that latencies are learned on."""

from importlib.metadata import version

from sglang.srt.kairos.parallel import attention_ranks
from sglang.srt.kairos.upstream import Scheduler


def engine_key(scheduler: Scheduler) -> str:
    """Describe the engine: model, numbers, ranks of both kinds, device, chunks, version of SGLang.

    Latencies that were learned on one engine are not used on another one.
    """
    # Here, because importing it takes seconds; a scheduler has it loaded.
    import torch

    args = scheduler.server_args
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return "|".join(
        str(part)
        for part in (
            args.model_path,
            args.dtype,
            args.quantization,
            args.kv_cache_dtype,
            scheduler.tp_size,
            attention_ranks(args),
            device,
            scheduler.chunked_prefill_size,
            version("sglang"),
        )
    )
