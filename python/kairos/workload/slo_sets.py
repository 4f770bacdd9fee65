"""SLO sets: the TTFT and TPOT objectives of each request of a trace.

Own prefill is the time that a prompt takes alone on an idle prefill instance, in full chunks,
behind the prefix that the cache is expected to hold.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from kairos.errors import InputError
from kairos.latency import Chunk, Profile
from kairos.slo import Slo, tpot_ms
from kairos.workload.trace import TraceRequest

_TTFT = {
    "L3": "0.5 s + 3 x own prefill",
    "F5": "5 s",
    "F2": "2 s",
    "LC": "1 s, or prompt tokens / 8,000 s if that is more",
}
SLO_SETS = (*_TTFT, "tiers")
NO_SLO = "none"
"""The set of a workload without objectives: all requests are best effort."""
DEFAULT_TPOT_MS = 30.0


@dataclass(frozen=True, slots=True)
class SloTier:
    """A class of the tiers set; its TTFT objective is base + factor x own prefill.

    Attributes:
        name: of the SLO class.
        share: of the requests, 0..1.
        base_s: seconds.
        factor: of own prefill.
        tpot_ms: TPOT objective, milliseconds.
    """

    name: str
    share: float
    base_s: float
    factor: float
    tpot_ms: float


TIERS = (
    SloTier("interactive", 0.5, 1.0, 2.0, 25.0),
    SloTier("standard", 0.3, 3.0, 4.0, 50.0),
    SloTier("batch", 0.2, 20.0, 8.0, 150.0),
)


def in_words(slo_set: str, tpot: float) -> str:
    """The objectives of a set in words.

    Args:
        slo_set: one of SLO_SETS, or NO_SLO.
        tpot: TPOT objective in milliseconds; tiers have their own.
    """
    if slo_set == NO_SLO:
        return "no objectives"
    if slo_set != "tiers":
        return f"TTFT {_TTFT[slo_set]}, TPOT {tpot:g} ms"
    return "; ".join(
        f"{100 * tier.share:.0f} % {tier.name}: TTFT {tier.base_s:g} s + {tier.factor:g} x own "
        f"prefill, TPOT {tier.tpot_ms:g} ms"
        for tier in TIERS
    )


def own_prefill_s(input_tokens: int, cached_tokens: int, profile: Profile) -> float:
    """Prefill time of a prompt that has an instance to itself, seconds."""
    seconds, done, chunk = 0.0, cached_tokens, profile.limits.chunk_tokens
    while done < input_tokens:
        new = min(chunk, input_tokens - done)
        seconds += profile.prefill.batch_s([Chunk(done, new)])
        done += new
    return seconds


def assign_slos(
    requests: Sequence[TraceRequest],
    cached_tokens: Sequence[int],
    profile: Profile,
    slo_set: str,
    *,
    tpot: float = DEFAULT_TPOT_MS,
    seed: int = 0,
) -> list[Slo]:
    """Give every request of a trace its SLO.

    Args:
        requests: the requests.
        cached_tokens: expected prefix hit of each request.
        profile: prefill latency of an instance.
        slo_set: one of SLO_SETS, or NO_SLO.
        tpot: TPOT objective in milliseconds; tiers have their own.
        seed: draws the tier of each request.

    Raises:
        InputError: unknown set, or a TPOT out of range.
    """
    if slo_set == NO_SLO:
        return [Slo()] * len(requests)
    if slo_set not in SLO_SETS:
        raise InputError(f"SLO set {slo_set!r}: allowed are {', '.join(SLO_SETS)}")
    tpot_ms(tpot, "--tpot-ms")
    own = [
        own_prefill_s(r.input_tokens, hit, profile)
        for r, hit in zip(requests, cached_tokens, strict=True)
    ]
    if slo_set == "tiers":
        shares = [tier.share for tier in TIERS]
        picked = random.Random(seed).choices(TIERS, shares, k=len(own))
        return [
            Slo(1e3 * (tier.base_s + tier.factor * seconds), tier.tpot_ms, tier.name)
            for tier, seconds in zip(picked, own, strict=True)
        ]
    ttft_s = {
        "L3": [0.5 + 3.0 * seconds for seconds in own],
        "F5": [5.0] * len(own),
        "F2": [2.0] * len(own),
        "LC": [max(1.0, r.input_tokens / 8000.0) for r in requests],
    }[slo_set]
    return [Slo(1e3 * seconds, tpot) for seconds in ttft_s]
