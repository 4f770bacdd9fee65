"""Regret: the attainment that Kairos loses against the best of SGLang's orders, cell by cell.

A cell is a trace, a TPOT objective and a load. The best order is chosen for each cell afterwards,
so that it is a harder baseline than any one configuration of SGLang.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kairos.latency import load_profile
from kairos.sim.config import UPSTREAM_ORDERS, SimConfig
from kairos.sim.sweep_point import SweepPoint

CONTINUOUS = "continuous"


class Policies(NamedTuple):
    """Policies of both stages that a cell compares."""

    prefill: str
    decode: str


KAIROS = Policies("urgency", "slack")
COMPARED = (KAIROS, *(Policies(order, CONTINUOUS) for order in UPSTREAM_ORDERS))


@dataclass(frozen=True, slots=True)
class RegretGrid:
    """The cells of a grid, and what they share.

    Attributes:
        traces: trace files.
        tpot_ms: TPOT objectives, milliseconds.
        loads: loads of the busier stage.
        requests: number of requests taken from the start of each trace; 0: all.
        slo: SLO set.
        profile: shipped name or path.
    """

    traces: tuple[str, ...]
    tpot_ms: tuple[float, ...]
    loads: tuple[float, ...]
    requests: int
    slo: str
    profile: str

    def points(self) -> list[SweepPoint]:
        """Return the simulations of all cells, those of one cell after another."""
        profile = load_profile(self.profile)
        return [
            SweepPoint(
                trace,
                (1, 1),
                self.requests,
                self.profile,
                load,
                self.slo,
                tpot_ms,
                0,
                False,
                SimConfig(policies.prefill, policies.decode).as_on_engine(profile),
                busier=True,
            )
            for trace, tpot_ms, load, policies in itertools.product(
                self.traces, self.tpot_ms, self.loads, COMPARED
            )
        ]


@dataclass(frozen=True, slots=True)
class RegretCell:
    """The comparison in one cell; attainments are end to end, percent of the requests.

    Attributes:
        trace: name of the trace.
        tpot_ms: TPOT objective, milliseconds.
        load: of the busier stage.
        kairos: attainment of Kairos.
        best: attainment of the best of SGLang's orders.
        best_order: the name of that order.
        regret: `best` minus `kairos`, points. A negative one is a gain of Kairos.
    """

    trace: str
    tpot_ms: float
    load: float
    kairos: float
    best: float
    best_order: str
    regret: float


def cells_of(results: Sequence[dict[str, Any]]) -> list[RegretCell]:
    """Compare the results of `RegretGrid.points`, which are in the same order."""
    return [_cell(results[at : at + len(COMPARED)]) for at in range(0, len(results), len(COMPARED))]


def worst(cells: Sequence[RegretCell]) -> RegretCell:
    """Return the cell with the largest regret."""
    return max(cells, key=lambda cell: cell.regret)


def trace_name(path: str) -> str:
    """Return the name of a trace file without its suffixes."""
    return Path(path).name.partition(".")[0]


def _cell(results: Sequence[dict[str, Any]]) -> RegretCell:
    kairos, *upstream = results
    best = max(upstream, key=lambda result: float(result["e2e_attainment"]))
    return RegretCell(
        trace_name(kairos["trace"]),
        kairos["tpot_ms"],
        kairos["load"],
        kairos["e2e_attainment"],
        best["e2e_attainment"],
        best["prefill_policy"],
        best["e2e_attainment"] - kairos["e2e_attainment"],
    )
