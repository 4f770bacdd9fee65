"""Server modes that Kairos refuses at start, and modes in which it plans no prefill batches."""

from typing import NamedTuple

from sglang.srt.environ import envs
from sglang.srt.kairos.config import KairosConfig
from sglang.srt.kairos.upstream import Scheduler, ServerArgs

from kairos.errors import InputError


class _Refusal(NamedTuple):
    """A mode that is not supported.

    Attributes:
        option: the flag or variable that asks for it.
        value: of that option.
        applies: the server is in this mode.
        reason: why Kairos does not support it.
    """

    option: str
    value: object
    applies: bool
    reason: str


def refuse_unsupported(server_args: ServerArgs, config: KairosConfig) -> None:
    """Check the options of a server, as far as upstream has resolved them.

    The launcher checks the options as given, a scheduler checks them once they are resolved: one
    option may set another.

    Raises:
        InputError: naming the option, its value and the reason.
    """
    # Here, because importing it takes seconds; a server has it loaded.
    from sglang.srt.arg_groups.model_override_base import resolving_view

    server_args = resolving_view(server_args)
    mode = server_args.disaggregation_mode
    if config.hold and mode != "decode":
        raise InputError(
            f"--kairos-hold has no effect with --disaggregation-mode {mode}: only decode servers "
            "hold first tokens back. Start this server without it."
        )
    if _has_ranks(server_args) and config.telemetry is not None:
        raise InputError(
            f"--kairos-telemetry {config.telemetry} is not supported with data-parallel attention: "
            "the ranks would share one address. Start this server without it; routers then read "
            "SGLang's own load figures"
        )
    for option, value, applies, reason in _refusals(server_args):
        if applies:
            raise InputError(f"{option} {value} is not supported with --kairos: {reason}")


def _refusals(args: ServerArgs) -> tuple[_Refusal, ...]:
    no_slo_fields = "the gRPC server has no SLO fields"
    ranks = _has_ranks(args)
    rust = bool(envs.SGLANG_RUST_SERVER.get())
    return (
        _Refusal(
            "--pp-size",
            args.pp_size,
            args.pp_size > 1,
            "pipeline stages would each order by their own clock",
        ),
        _Refusal(
            "--attn-dp-size",
            max(args.attn_dp_size, args.dp_size),
            ranks and args.disaggregation_mode == "null",
            "without disaggregation, a prompt of one rank would hold up the decode steps of all. "
            "Start prefill and decode servers (--disaggregation-mode)",
        ),
        _Refusal(
            "--enable-two-batch-overlap",
            True,
            ranks and args.enable_two_batch_overlap,
            "the halves of a batch are steps of their own, whose times Kairos does not model. "
            "Start this server without it",
        ),
        _Refusal(
            "--elastic-ep-backend",
            args.elastic_ep_backend,
            ranks and args.elastic_ep_backend is not None,
            "a step is predicted for a fixed number of ranks. Start this server without it",
        ),
        _Refusal(
            "SGLANG_SCHEDULER_SKIP_ALL_GATHER",
            1,
            ranks and bool(envs.SGLANG_SCHEDULER_SKIP_ALL_GATHER.get()),
            "Kairos knows the other ranks from that gather",
        ),
        _Refusal(
            "--dp-size",
            args.dp_size,
            args.dp_size > 1 and not ranks,
            "the replicas would share one address for telemetry and one folder of learned "
            "latencies. Start one server per replica behind a router",
        ),
        _Refusal(
            "--tokenizer-worker-num",
            args.tokenizer_worker_num,
            args.tokenizer_worker_num > 1,
            "SGLang loads no plugins in extra tokenizer workers, so SLO headers would be ignored",
        ),
        _Refusal(
            "--speculative-algorithm",
            args.speculative_algorithm,
            args.speculative_algorithm is not None and args.disaggregation_mode == "decode",
            "a step would make several tokens per request, which Kairos' step times and slack do "
            "not count",
        ),
        _Refusal("--grpc-mode", True, args.grpc_mode or args.smg_grpc_mode, no_slo_fields),
        _Refusal("--grpc-port", args.grpc_port, args.grpc_port is not None, no_slo_fields),
        _Refusal(
            "SGLANG_RUST_SERVER",
            1,
            rust,
            "the embedded Rust server does not read SLOs from headers or bodies",
        ),
        _Refusal(
            "--encoder-only",
            True,
            args.encoder_only,
            "an encoder has neither prefill nor decode",
        ),
        _Refusal(
            "--enable-pd-role-switch",
            True,
            args.enable_pd_role_switch,
            "Kairos is set up for the role that a server starts with",
        ),
        _Refusal(
            "--use-ray", True, args.use_ray, "Ray workers are not started with Kairos' environment"
        ),
    )


def _has_ranks(args: ServerArgs) -> bool:
    """Return whether a server has data-parallel attention; upstream resolves its old flag later."""
    return args.attn_dp_size > 1 or args.enable_dp_attention


def planning_refusal(scheduler: Scheduler) -> str | None:
    """Return why the prefill batches of a scheduler cannot be planned; None if they can."""
    for reason, present in (
        ("not a prefill server", scheduler.disaggregation_mode.value != "prefill"),
        ("chunked prefill is off", not scheduler.chunked_prefill_size),
        ("an embedding model", not scheduler.is_generation),
        ("overlapped loading of LoRA adapters", scheduler.enable_lora_overlap_loading),
        ("hierarchical cache", scheduler.enable_hierarchical_cache),
        ("hybrid sliding-window attention", scheduler.is_hybrid_swa),
        ("speculative decoding", not scheduler.spec_algorithm.is_none()),
        ("mixed chunks", scheduler.is_mixed_chunk),
        (
            "deterministic inference with chunks of a fixed size",
            scheduler.page_size % (scheduler.truncation_align_size or 1) != 0,
        ),
        ("a prefill delayer", scheduler.prefill_delayer is not None),
        ("diffusion model", scheduler.dllm_config is not None),
        ("a state-space model", hasattr(scheduler.req_to_token_pool, "mamba_allocator")),
    ):
        if present:
            return reason
    return None
