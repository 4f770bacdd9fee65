"""Goodput: the largest load at which a share of requests still meets both SLOs."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from kairos.errors import InputError

TARGETS = (90.0, 99.0)
LOWEST, HIGHEST = 0.05, 4.0
TOLERANCE = 0.02
"""The search ends when the bracket is this narrow, relative to its lower end."""


class Goodput(msgspec.Struct, frozen=True, kw_only=True):
    """Attributes:
    target: percent of requests that have to meet both SLOs.
    load: largest load found that reaches it; 0 if not even LOWEST does.
    misses_at: smallest load found that does not; None if even HIGHEST does.
    probes: e2e attainment by load, all that was tried or known.
    """

    target: float
    load: float
    misses_at: float | None
    probes: dict[str, float]


def largest_load(
    attainment: Callable[[float], float],
    target: float,
    known: Mapping[float, float] | None = None,
    tolerance: float = TOLERANCE,
) -> Goodput:
    """Bisect the load, taking attainment as falling with it.

    Where it does not fall evenly, the result is one crossing of several.

    Args:
        attainment: percent of requests that meet both SLOs at a load; minutes, on an engine.
        known: results that need not be measured again.
        tolerance: relative width at which the search ends.
    """
    if not 0.0 < target <= 100.0:
        raise InputError(f"goodput target: {target!r} is out of range, allowed are 0 to 100")
    probes = dict(known or {})

    def reaches(load: float) -> bool:
        if load not in probes:
            probes[load] = attainment(load)
        return probes[load] >= target

    # The lowest miss that is known, and the highest hit below it.
    high = min((load for load, value in probes.items() if value < target), default=None)
    low = max(
        (x for x, value in probes.items() if value >= target and (high is None or x < high)),
        default=None,
    )
    while low is None:
        candidate = LOWEST if high is None or high <= 2 * LOWEST else round(high / 2, 3)
        if reaches(candidate):
            low = candidate
        elif candidate <= LOWEST:
            return _result(target, 0.0, candidate, probes)
        else:
            high = candidate
    while high is None:
        if low >= HIGHEST:
            return _result(target, low, None, probes)
        candidate = round(min(HIGHEST, 2 * low), 3)
        if reaches(candidate):
            low = candidate
        else:
            high = candidate
    while high / low > 1.0 + tolerance and high - low > 0.002:
        middle = round((low * high) ** 0.5, 3)
        if reaches(middle):
            low = middle
        else:
            high = middle
    return _result(target, low, high, probes)


def in_report(found: Mapping[str, Any]) -> str:
    """The load of a Goodput in report.json; says where the search came to its end."""
    if not found["load"]:
        return f"below {LOWEST:g}"
    return f"{found['load']:.2f}" + " or more" * (found["misses_at"] is None)


def _result(
    target: float, load: float, misses_at: float | None, probes: Mapping[float, float]
) -> Goodput:
    shown = {f"{x:g}": round(probes[x], 3) for x in sorted(probes)}
    return Goodput(target=target, load=load, misses_at=misses_at, probes=shown)
