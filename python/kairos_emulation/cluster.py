"""Cluster specifications for a machine without a GPU."""

from dataclasses import replace
from pathlib import Path

from kairos.cluster import ClusterSpec
from kairos_emulation.launch import Platform, settings
from kairos_emulation.models import ModelKind, write_model

_STOP_GRACE_S = 0.5
_MODEL: dict[str, ModelKind] = {"cpu": "tiny-random", "emulated": "emulated"}


def platform_model(platform: Platform, folder: str | Path) -> Path:
    """Return the directory of the model that a platform serves, and write it when it is missing.

    Args:
        platform: "cpu" or "emulated".
        folder: parent of the model's directory.

    Raises:
        InputError: the model cannot be written.
    """
    kind = _MODEL[platform]
    model = Path(folder).resolve() / kind
    write_model(kind, model)
    return model


def with_platform(
    spec: ClusterSpec, platform: Platform, profile: str | Path | None = None
) -> ClusterSpec:
    """Return `spec` with the flags and variables that a platform needs. Those of `spec` win.

    Args:
        spec: its `model` is a directory of `platform_model`.
        platform: "cpu" or "emulated".
        profile: shipped name or path, for "emulated" only; None is the default of `settings`.

    Raises:
        InputError: bad platform or profile.
    """
    ranks = spec.dp_attention
    single = settings(platform, "single", profile, spec.model, ranks.prefill)
    env = {**single.env, **spec.env}
    # A slower stop would only release device memory in order, and there is none.
    spec = replace(spec, stop_grace_s=min(spec.stop_grace_s, _STOP_GRACE_S))
    if not spec.disaggregated:
        return replace(spec, env=env, args=(*single.args, *spec.args))
    prefill = settings(platform, "prefill", profile, spec.model, ranks.prefill)
    decode = settings(platform, "decode", profile, spec.model, ranks.decode)
    return replace(
        spec,
        env=env,
        args=(),
        # Upstream takes the last of a repeated flag, so the caller's flags come last.
        prefill_args=(*prefill.args, *spec.args, *spec.prefill_args),
        decode_args=(*decode.args, *spec.args, *spec.decode_args),
    )
