"""Slower time: profile, arrivals and SLOs stretched together, so that attainment stays.

For machines whose cores cannot keep up with emulated servers at full speed. What does not stretch
is what the host itself computes, so that its share of every step shrinks by the factor, and the
seconds that policies have as constants (slices, starvation limits).
"""

import msgspec

from kairos.errors import InputError
from kairos.latency import Profile

LARGEST = 20.0


def check_factor(factor: float) -> None:
    """Raises: InputError: not a factor from 1 to LARGEST."""
    if not 1.0 <= factor <= LARGEST:
        raise InputError(f"--dilate: {factor!r} is out of range, allowed are 1 to {LARGEST:g}")


def dilated(profile: Profile, factor: float) -> Profile:
    """The profile of an engine that takes `factor` times as long for everything."""
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
