"""Figures that tables and plots share, selected from the records."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from kairos.replay.evaluation.columns import ATTAINMENTS
from kairos.replay.evaluation.records import EngineArm, Records

# The load sweep on Mooncake conversations, L3, 30 ms, 1P1D: record by load and arms. An arm that
# several records have is taken from the first.
SWEEP_ARMS = ("fcfs", "lpm", "hrrn", "sjf", "kairos")
SWEEP = (
    ("0.22", ("13-load-0.22",)),
    ("0.626", ("12-load-0.626",)),
    ("0.7", ("11-load-0.7",)),
    ("0.9", ("6-headline", "1-mooncake")),
    ("1.1", ("5-overload",)),
)
# Its fidelity was measured with an earlier simulator.
WITHOUT_FIDELITY = ("1-mooncake",)


class FidelityPoint(NamedTuple):
    """Simulator against engine for one arm.

    Attributes:
        record: name of the record.
        load: load asked for.
        arm: name of the arm.
        points: by figure, simulator minus engine in points of attainment.
        engine: the engine's figures.
    """

    record: str
    load: str
    arm: str
    points: dict[str, float]
    engine: EngineArm


def best_upstream(e2e: Mapping[str, float]) -> str:
    """The upstream arm with the highest e2e attainment; empty if there is none."""
    upstream = (arm for arm in e2e if not arm.startswith("kairos"))
    return max(upstream, key=lambda arm: e2e[arm], default="")


def sweep(records: Records) -> dict[str, dict[str, EngineArm]]:
    """Figures of the load sweep by arm and load."""
    found: dict[str, dict[str, EngineArm]] = {arm: {} for arm in SWEEP_ARMS}
    for load, names in SWEEP:
        for name in names:
            for arm, own in records.engine_record(name).at("").arms.items():
                if arm in found:
                    found[arm].setdefault(load, own)
    return found


def fidelity(records: Records) -> Iterable[FidelityPoint]:
    """Every arm that the present simulator was compared for."""
    for name, record in records.engine.items():
        if name in WITHOUT_FIDELITY:
            continue
        for load, found in record.by_load().items():
            for arm, points in found.fidelity.items():
                if points:
                    yield FidelityPoint(name, load, arm, attainment_points(points), found.arms[arm])


def attainment_points(points: Mapping[str, float | None]) -> dict[str, float]:
    """The differences of the three attainments; one that is missing counts as none."""
    known = {name: points[name] for name in ATTAINMENTS}
    return {name: 0.0 if value is None else value for name, value in known.items()}
