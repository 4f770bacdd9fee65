"""Slower time: profile, arrivals and SLOs are stretched together, so that attainment stays.

This serves machines whose cores cannot keep up with emulated servers at full speed. The work of
the host itself does not stretch, so its share of every step shrinks by the factor. Policy constants
in seconds (slices, starvation limits) do not stretch either.
"""

import msgspec

from kairos.errors import InputError
from kairos.latency import Profile

MAX_FACTOR = 20.0


def check_factor(factor: float) -> None:
    """Raise `InputError` if `factor` is not from 1 to MAX_FACTOR."""
    if not 1.0 <= factor <= MAX_FACTOR:
        raise InputError(f"--dilate: {factor!r} is out of range, allowed are 1 to {MAX_FACTOR:g}")


def dilated(profile: Profile, factor: float) -> Profile:
    """Return the profile of an engine that takes `factor` times as long for every operation.

    Raises:
        InputError: `factor` is out of range.
    """
    check_factor(factor)
    if factor == 1.0:
        return profile
    prefill, decode, link = profile.prefill, profile.decode, profile.kv
    slowed = msgspec.structs.replace
    return slowed(
        profile,
        name=f"{profile.name}-x{factor:g}",
        provenance=slowed(
            profile.provenance,
            source=f"{profile.provenance.source} Slowed down {factor:g} times.",
        ),
        prefill=slowed(
            prefill,
            fixed_s=prefill.fixed_s * factor,
            weight_floor_s=prefill.weight_floor_s * factor,
            per_token_s=prefill.per_token_s * factor,
            per_token_context_s=prefill.per_token_context_s * factor,
        ),
        decode=slowed(
            decode,
            fixed_s=decode.fixed_s * factor,
            experts_s=decode.experts_s * factor,
            per_context_token_s=decode.per_context_token_s * factor,
            per_request_s=decode.per_request_s * factor,
        ),
        kv=slowed(link, fixed_s=link.fixed_s * factor, bytes_per_s=link.bytes_per_s / factor),
    )
