"""Environment and flags with which a real SGLang server runs without a GPU.

The cluster launcher uses this module, so it imports neither torch nor sglang.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from kairos.errors import InputError
from kairos.latency import load_profile
from kairos.validation import check_choice

Platform = Literal["cpu", "emulated"]
Role = Literal["prefill", "decode", "single"]

DEFAULT_PROFILE = "minimax-m2.5-tp4-h200"
MAX_CONTEXT = 262_144  # context length of the emulated model
_CPU_KV_TOKENS = 60_000
_CPU_MAX_BATCH = 64
_MAX_RANKS = 64
_CPU_RANKS = (1, 2, 4, 8)  # they divide the layers of the small model


@dataclass(frozen=True)
class LaunchSettings:
    """Additions to a server's environment and to `python -m sglang.launch_server`.

    Attributes:
        env: variables to set on top of the caller's environment. An empty value has to be set.
        args: command line flags. The caller adds host, ports, `--disable-overlap-schedule` and
            `--kairos*`. A flag that is repeated later on the command line wins.
    """

    env: dict[str, str]
    args: list[str]


def settings(
    platform: Platform,
    role: Role,
    profile: str | Path | None,
    model_dir: str | Path,
    ranks: int = 1,
) -> LaunchSettings:
    """Return the settings of one server.

    Args:
        platform: "cpu" computes with real weights, "emulated" only takes the modelled time.
        role: role in a disaggregated pair, or "single" for an ordinary server.
        profile: shipped name or path, for the emulated platform only; None is `DEFAULT_PROFILE`.
        model_dir: directory written by `kairos_emulation.models`.
        ranks: data-parallel attention ranks; the limits of a profile are those of one.

    Raises:
        InputError: bad platform, role or profile, or ranks that the platform cannot have.
    """
    check_choice("platform", platform, get_args(Platform))
    check_choice("role", role, get_args(Role))
    if ranks > _MAX_RANKS or (platform == "cpu" and ranks not in _CPU_RANKS):
        allowed = f"1 to {_MAX_RANKS} ranks"
        if platform == "cpu":
            allowed = "1, 2, 4 and 8 ranks: they divide the layers of its model"
        raise InputError(
            f"--dp-attention {ranks} is not supported with platform {platform}, "
            f"which allows {allowed}."
        )
    env = _common_env(platform)
    args = ["--model-path", str(model_dir), *_common_args(), *_role_args(role)]
    if platform == "cpu":
        # "auto" turns an fp32 checkpoint into fp16, whose rounding depends on the batch's shape.
        # The same prompt would then give other tokens in another batch.
        args += ["--dtype", "float32"]
        args += _size_args(_CPU_KV_TOKENS, _CPU_MAX_BATCH, role, ranks)
        return LaunchSettings(env, args)

    chosen = str(profile or DEFAULT_PROFILE)
    loaded = load_profile(chosen)
    if Path(chosen).exists():
        chosen = str(Path(chosen).resolve())  # a server may be started in another directory
    env |= _emulated_env(chosen)
    limits = loaded.limits
    args += _size_args(limits.kv_tokens, limits.max_batch, role, ranks)
    args += [
        # Upstream divides it by the number of ranks.
        "--chunked-prefill-size",
        str(limits.chunk_tokens * ranks),
        # A profile describes batches of at most one chunk.
        "--max-prefill-tokens",
        str(limits.chunk_tokens),
        "--context-length",
        str(min(MAX_CONTEXT, limits.kv_tokens)),
    ]
    return LaunchSettings(env, args)


def _common_env(platform: Platform) -> dict[str, str]:
    return {
        "SGLANG_PLATFORM": f"kairos-{platform}",
        # Upstream asks torch.cuda in places; a machine with a GPU has to behave like others.
        "CUDA_VISIBLE_DEVICES": "",
        # Several servers share few cores; a spinning OpenMP team per process starves the rest.
        "OMP_NUM_THREADS": "1",
        # Upstream wants an entry per rank. It binds no thread without its own CPU kernels.
        "SGLANG_CPU_OMP_THREADS_BIND": "|".join(["0"] * _MAX_RANKS),
        "TOKENIZERS_PARALLELISM": "false",
        # The model is a local directory; without this every start asks the hub first.
        "HF_HUB_OFFLINE": "1",
        # Mooncake looks for RDMA devices otherwise, and prints per-transfer lines.
        "MC_FORCE_TCP": "1",
        "MC_LOG_LEVEL": "ERROR",
        # Some containers set it. Without .pyc files every process compiles SGLang again.
        "PYTHONDONTWRITEBYTECODE": "",
    }


def _emulated_env(profile: str) -> dict[str, str]:
    return {
        "KAIROS_EMULATION_PROFILE": profile,
        # The model class without arithmetic. Upstream's models are then not imported.
        "SGLANG_EXTERNAL_MODEL_PACKAGE": "kairos_emulation.model",
        # The modelled link moves no bytes, but the first token has to reach the decode server.
        # With this its record goes over ZeroMQ instead of through the transfer engine.
        "SGLANG_MOONCAKE_SEND_AUX_TCP": "1",
    }


def _common_args() -> list[str]:
    return [
        "--device",
        "cpu",
        "--attention-backend",
        "torch_native",
        # The sizes of pools are given. Upstream reserves memory for activations of a GPU otherwise,
        # which may leave nothing for them.
        "--mem-fraction-static",
        "0.5",
        # Otherwise an idle scheduler spins on a core.
        "--sleep-on-idle",
        # The warm-up request of a disaggregated server needs its peer. The launcher checks
        # readiness with a generation through every pair instead.
        "--skip-server-warmup",
    ]


def _role_args(role: Role) -> list[str]:
    if role == "single":
        return []
    args = ["--disaggregation-mode", role, "--disaggregation-transfer-backend", "mooncake"]
    if role == "decode":
        # The default backup of a retracted request copies through CUDA streams.
        args += ["--disaggregation-decode-retraction-backup", "cpu_tensor"]
    return args


def _size_args(kv_tokens: int, max_batch: int, role: Role, ranks: int) -> list[str]:
    # The row table takes rows x context x 4 bytes, by default with 2,048 rows. A prefill server
    # needs few rows, because a request leaves once its KV is sent; a burst may hold many.
    rows = max_batch if role != "prefill" else max(max_batch, 64)
    # Upstream divides the rows by the number of ranks. Every rank has all KV tokens.
    return ["--max-total-tokens", str(kv_tokens), "--max-running-requests", str(rows * ranks)]
