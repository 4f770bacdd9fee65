"""Cluster specifications for a machine without a GPU."""

from dataclasses import replace
from pathlib import Path

from kairos.cluster import ClusterSpec
from kairos_emulation.launch import Platform, settings
from kairos_emulation.models import ModelKind, write_model

_STOP_GRACE_S = 0.5
_MODEL: dict[str, ModelKind] = {"cpu": "tiny-random", "emulated": "emulated"}


def platform_model(platform: Platform, folder: str | Path) -> Path:
    """Directory of the model that a platform serves, below `folder`; written when missing.

    Raises:
        InputError: it cannot be written.
    """
    kind = _MODEL[platform]
    model = Path(folder).resolve() / kind
    write_model(kind, model)
    return model


def with_platform(
    spec: ClusterSpec, platform: Platform, profile: str | Path | None = None
) -> ClusterSpec:
    """Adds what the servers need on a platform. Flags and variables of `spec` win.

    Args:
        spec: its `model` is a directory of `platform_model`.
        profile: shipped name or path; for "emulated" only, None is the default of `settings`.

    Raises:
        InputError: bad platform or profile.
    """
    single = settings(platform, "single", profile, spec.model)
    env = {**single.env, **spec.env}
    # No device memory that a slower end would release in order.
    spec = replace(spec, stop_grace_s=min(spec.stop_grace_s, _STOP_GRACE_S))
    if not spec.disaggregated:
        return replace(spec, env=env, args=(*single.args, *spec.args))
    prefill = settings(platform, "prefill", profile, spec.model)
    decode = settings(platform, "decode", profile, spec.model)
    return replace(
        spec,
        env=env,
        args=(),
        # Upstream takes the last of a repeated flag, so those of the caller come after.
        prefill_args=(*prefill.args, *spec.args, *spec.prefill_args),
        decode_args=(*decode.args, *spec.args, *spec.decode_args),
    )
