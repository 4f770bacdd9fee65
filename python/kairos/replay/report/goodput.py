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
    """Result of a search.

    Attributes:
        target: percent of requests that must meet both SLOs.
        load: largest load found that reaches the target; 0 if LOWEST does not reach it.
        misses_at: smallest load found that misses the target; None if HIGHEST reaches it.
        probes: end-to-end attainment by load, of all loads tried or known.
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
    """Bisect the load, assuming that attainment falls with it.

    If attainment does not fall monotonically, the result is one of several crossings.

    Args:
        attainment: returns the percent of requests that meet both SLOs at a load; an engine takes
            minutes for it.
        target: percent of requests that must meet both SLOs.
        known: attainment by load that need not be measured again.
        tolerance: relative width of the bracket at which the search ends.

    Raises:
        InputError: `target` is out of range.
    """
    if not 0.0 < target <= 100.0:
        raise InputError(f"goodput target: {target!r} is out of range, allowed are 0 to 100")
    probes = dict(known or {})

    def reaches(load: float) -> bool:
        if load not in probes:
            probes[load] = attainment(load)
        return probes[load] >= target

    # The lowest known miss, and the highest hit below it.
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
    """Return the load of a Goodput of report.json, and whether the search ended at its bounds."""
    if not found["load"]:
        return f"below {LOWEST:g}"
    return f"{found['load']:.2f}" + " or more" * (found["misses_at"] is None)


def _result(
    target: float, load: float, misses_at: float | None, probes: Mapping[float, float]
) -> Goodput:
    shown = {f"{x:g}": round(probes[x], 3) for x in sorted(probes)}
    return Goodput(target=target, load=load, misses_at=misses_at, probes=shown)
