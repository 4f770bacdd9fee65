"""Measurement of the points of a grid, until an end of the sweep."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from kairos.calibrate.drive import DriveError
from kairos.calibrate.grid import Point, SkippedPoint
from kairos.calibrate.measure import Measurement

FAILURES = 3
"""A sweep ends after this number of points that fail in a row: the servers are gone or unfit."""
_SLACK_S = 0.5

SweepEnd = Literal["complete", "budget", "interrupted", "failed"]
Measure = Callable[[Point, Callable[[], float]], Measurement]
OnPoint = Callable[[Point, Measurement | SkippedPoint], None]


@dataclass(slots=True)
class SweepResult:
    """Samples of a sweep.

    Attributes:
        samples: one per measured point, in the order of measurement.
        skipped: points without a sample, with the reason.
        end: why the sweep ended. "budget": some points were left out for lack of time.
    """

    samples: list[Measurement] = field(default_factory=list)
    skipped: list[SkippedPoint] = field(default_factory=list)
    end: SweepEnd = "complete"


def sweep(
    points: Sequence[Point],
    measure: Measure,
    estimate_s: Callable[[Point], float],
    *,
    budget_s: float,
    now: Callable[[], float],
    on_point: OnPoint = lambda _point, _result: None,
) -> SweepResult:
    """Measure `points` in their order. Ctrl-C ends the sweep and keeps its samples.

    Args:
        points: to measure.
        measure: measures one point, within the seconds that its second argument returns.
        estimate_s: estimated time of a point; corrected by the times of earlier points.
        budget_s: seconds. A point that would end later is left out; a shorter one may fit.
        now: monotonic seconds.
        on_point: called after every point.
    """
    swept = SweepResult()
    began = now()
    end = began + budget_s
    expected_s = failures = 0.0
    try:
        for i, point in enumerate(points):
            pace = (now() - began) / expected_s if expected_s else 1.0
            late = now() + pace * estimate_s(point) > end
            problem = ""
            if not late:
                expected_s += estimate_s(point)
                try:
                    sample = measure(point, lambda: max(0.001, end - now()))
                except DriveError as error:
                    problem, late = str(error), now() >= end - _SLACK_S
            if not late and not problem:
                failures = 0
                swept.samples.append(sample)
                on_point(point, sample)
                continue
            if late:
                swept.end, problem = "budget", f"beyond the budget of {budget_s:g} s"
            else:
                failures += 1
            swept.skipped.append(SkippedPoint(point, problem))
            on_point(point, swept.skipped[-1])
            if failures == FAILURES:
                swept.end = "failed"
                swept.skipped += [SkippedPoint(p, "not tried") for p in points[i + 1 :]]
                break
    except KeyboardInterrupt:
        swept.end = "interrupted"
        done = len(swept.samples) + len(swept.skipped)
        swept.skipped += [SkippedPoint(p, "interrupted") for p in points[done:]]
    return swept
