"""Goes through the points of a grid until it is done, out of time, interrupted or failing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from kairos.calibrate.drive import DriveError
from kairos.calibrate.grid import Point, SkippedPoint
from kairos.calibrate.measure import Measurement

FAILURES = 3
"""So many points in a row that fail end the sweep: the servers are gone or unfit."""
_SLACK_S = 0.5

SweepEnd = Literal["complete", "budget", "interrupted", "failed"]
Measure = Callable[[Point, Callable[[], float]], Measurement]


@dataclass(slots=True)
class SweepResult:
    """What came out.

    Attributes:
        samples: one per point, in the order measured.
        skipped: points without one, and why.
        end: why it ended. "budget": some points were left out for lack of time.
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
    progress: Callable[[Point, Measurement | SkippedPoint], None] = lambda _point, _result: None,
) -> SweepResult:
    """Measure `points` in their order. Ctrl-C ends it and keeps what there is.

    Args:
        estimate_s: how long a point takes. Corrected by how long the points before took.
        budget_s: a point that would not end within it is left out, shorter ones may still fit.
        now: monotonic seconds.
        progress: called behind every point.
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
                progress(point, sample)
                continue
            if late:
                swept.end, problem = "budget", f"beyond the budget of {budget_s:g} s"
            else:
                failures += 1
            swept.skipped.append(SkippedPoint(point, problem))
            progress(point, swept.skipped[-1])
            if failures == FAILURES:
                swept.end = "failed"
                swept.skipped += [SkippedPoint(p, "not tried") for p in points[i + 1 :]]
                break
    except KeyboardInterrupt:
        swept.end = "interrupted"
        done = len(swept.samples) + len(swept.skipped)
        swept.skipped += [SkippedPoint(p, "interrupted") for p in points[done:]]
    return swept
