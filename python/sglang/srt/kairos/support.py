"""Server modes that Kairos does not support yet are refused at start, with the reason."""

from typing import Any

from sglang.srt.environ import envs
from sglang.srt.kairos.config import KairosConfig

from kairos.errors import InputError


def refuse_unsupported(server_args: Any, config: KairosConfig) -> None:
    """Check an upstream `ServerArgs` (raw or resolved).

    Raises:
        InputError: naming the option, its value and the reason.
    """
    a = server_args
    if config.hold and a.disaggregation_mode != "decode":
        raise InputError(
            "--kairos-hold has no effect with --disaggregation-mode "
            f"{a.disaggregation_mode}: only decode servers hold first tokens back"
        )
    for option, value, refused, reason in (
        (
            "--pp-size",
            a.pp_size,
            a.pp_size > 1,
            "pipeline stages would each order by their own clock",
        ),
        (
            "--enable-dp-attention",
            True,
            a.enable_dp_attention,
            "the data-parallel ranks of a step must agree on it, and Kairos decides for each alone",
        ),
        (
            "--tokenizer-worker-num",
            a.tokenizer_worker_num,
            a.tokenizer_worker_num > 1,
            "SGLang loads no plugins in extra tokenizer workers, so SLO headers would be ignored",
        ),
        (
            "--speculative-algorithm",
            a.speculative_algorithm,
            a.speculative_algorithm is not None and a.disaggregation_mode == "decode",
            "a step would make several tokens per request, which Kairos' step times and slack do "
            "not count",
        ),
        ("--grpc-mode", True, a.grpc_mode or a.smg_grpc_mode, "the gRPC server has no SLO fields"),
        ("--grpc-port", a.grpc_port, a.grpc_port is not None, "the gRPC server has no SLO fields"),
        (
            "SGLANG_RUST_SERVER",
            1,
            envs.SGLANG_RUST_SERVER.get(),
            "the embedded Rust server does not read SLOs from headers or bodies",
        ),
        ("--encoder-only", True, a.encoder_only, "an encoder has neither prefill nor decode"),
        (
            "--enable-pd-role-switch",
            True,
            a.enable_pd_role_switch,
            "Kairos is set up for the role that a server starts with",
        ),
        ("--use-ray", True, a.use_ray, "Ray workers are not started with Kairos' environment"),
    ):
        if refused:
            raise InputError(f"{option} {value} is not supported with --kairos: {reason}")
