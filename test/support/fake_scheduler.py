"""A stand-in for upstream's scheduler, as Kairos finds it when both have just been made."""

from types import SimpleNamespace
from typing import Any


def fake_scheduler(role: str, **changes: Any) -> Any:
    """An idle scheduler on which nothing of Kairos is refused. `changes`: other attributes."""
    attributes = {
        "disaggregation_mode": SimpleNamespace(value=role),
        "req_to_token_pool": SimpleNamespace(available_size=lambda: 8),
        "tp_size": 1,
        "metrics_reporter": SimpleNamespace(metrics_collector=None, forward_pass_device_timer=None),
        "chunked_prefill_size": 2048,
        "page_size": 1,
        "max_total_num_tokens": 10_000,
        "enable_priority_scheduling": False,
        "enable_lora": False,
        "enable_lora_overlap_loading": False,
        "is_generation": True,
        "enable_hierarchical_cache": False,
        "is_hybrid_swa": False,
        "spec_algorithm": SimpleNamespace(is_none=lambda: True),
        "is_mixed_chunk": False,
        "truncation_align_size": None,
        "prefill_delayer": None,
        "dllm_config": None,
        "require_mlp_sync": False,
        "enable_hisparse": False,
        "enable_pdmux": False,
        "enable_overlap": True,
        "enable_decode_hicache": False,
        "max_running_requests": 8,
        "model_config": SimpleNamespace(is_encoder_decoder=False),
        "tp_worker": SimpleNamespace(model_runner=SimpleNamespace()),
        "server_args": SimpleNamespace(
            retraction_policy="default",
            model_path="m",
            dtype="auto",
            quantization=None,
            kv_cache_dtype="auto",
            disaggregation_decode_enable_radix_cache=False,
            disaggregation_decode_host_receive_threshold=1.0,
            disaggregation_decode_allocation_policy="early",
        ),
    }
    return SimpleNamespace(**{**attributes, **changes})
