"""The report as data: the rows of its table, and report.json."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from kairos.replay.report.results import Arm
from kairos.replay.report.summary import BOOTSTRAPPED, Summary, interval_of, per_request

if TYPE_CHECKING:
    pass

SCHEMA = 2
HEADLINE_LOAD = 0.9
_MISSING = "–"


@dataclass(frozen=True, slots=True)
class ReportRow:
    """A line of the table.

    Attributes:
        label: what it shows.
        field: attribute of Summary.
        digits: decimals.
        better: 1 if more is better, -1 if less is, 0 if neither.
        unit: written after each value.
    """

    label: str
    field: str
    digits: int
    better: int = 0
    unit: str = ""

    def text(self, summary: Summary) -> str:
        value = getattr(summary, self.field)
        if value is None:
            return _MISSING
        return f"{value:,.{self.digits}f}{self.unit}" if value < math.inf else "never"

    def interval(self, summary: Summary) -> str:
        """Its confidence interval, empty where there is none."""
        if self.field not in summary.intervals:
            return ""
        low, high = summary.intervals[self.field]
        return f"{low:,.{self.digits}f}–{high:,.{self.digits}f}"


ROWS = (
    ReportRow("TTFT attainment", "ttft_attainment", 1, 1, " %"),
    ReportRow("TPOT attainment", "tpot_attainment", 1, 1, " %"),
    ReportRow("e2e attainment (both)", "e2e_attainment", 1, 1, " %"),
    ReportRow("TPOT attainment, engine's clock", "tpot_attainment_engine_clock", 1, 1, " %"),
    ReportRow("TTFT p50", "ttft_p50_s", 2, -1, " s"),
    ReportRow("TTFT p99", "ttft_p99_s", 2, -1, " s"),
    ReportRow("TPOT p50", "tpot_p50_ms", 1, -1, " ms"),
    ReportRow("TPOT p99", "tpot_p99_ms", 1, -1, " ms"),
    ReportRow("longest pause between tokens", "max_stall_s", 2, -1, " s"),
    ReportRow("TTFT attainment, longest 10 %", "longest10_ttft_attainment", 1, 1, " %"),
    ReportRow("e2e attainment, longest 10 %", "longest10_e2e_attainment", 1, 1, " %"),
    ReportRow("TTFT p99, longest 10 %", "longest10_ttft_p99_s", 2, -1, " s"),
    ReportRow("worst TTFT / its SLO", "max_ttft_over_slo", 1, -1),
    ReportRow("Jain's index of TTFT service", "jain_index", 3, 1),
    ReportRow("tokens/s that met both SLOs", "goodput_tokens_per_s", 0, 1),
    ReportRow("tokens/s", "tokens_per_s", 0, 1),
    ReportRow("tokens per second of decode time", "decode_tokens_per_busy_s", 0, 1),
    ReportRow("load asked for", "load", 2),
    ReportRow("load with the servers' prefix hits", "effective_load", 3),
    ReportRow("prompt tokens from prefix cache", "prefix_hit_percent", 1, 0, " %"),
    ReportRow("prefix hits that the load assumes", "expected_prefix_hit_percent", 1, 0, " %"),
    ReportRow("requests", "requests", 0),
    ReportRow("runs", "runs", 0),
    ReportRow("failures", "failures", 0, -1),
    ReportRow("send lag p99 (client)", "send_lag_p99_ms", 1, 0, " ms"),
)


@dataclass(frozen=True, slots=True)
class Extras:
    """What is computed beside the runs.

    Attributes:
        simulated: figures of the simulator per load and arm.
        fidelity: simulator minus engine per load and arm; None where it has no model of an arm.
        goodput: per arm, load at which a share of requests still meets both SLOs.
        differences: what was overlooked by --force.
    """

    simulated: Mapping[float, Mapping[str, dict[str, Any] | None]]
    fidelity: Mapping[float, Mapping[str, dict[str, float | None] | None]]
    goodput: Mapping[str, Any]
    differences: Sequence[str] = ()


NO_EXTRAS = Extras({}, {}, {})


def subtitle(arms: Sequence[Arm]) -> str:
    """The workload in one line."""
    h = arms[0].header
    tpot = "TPOT 25/50/150 ms" if h.slo_set == "tiers" else f"TPOT {h.tpot_ms:g} ms"
    clock = f"emulated with profile {h.profile.name}" if h.emulated else f"profile {h.profile.name}"
    slowed = f", slowed down {h.dilate:g} times" if h.dilate != 1.0 else ""
    return (
        f"{h.trace}, {h.requests} requests in {h.span_s:.0f} s, load {h.load:g}, "
        f"SLO {h.slo_set} + {tpot}, {h.instances}, {clock}{slowed}"
    )


def gains(arms: Sequence[Arm]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Per arm after the first and figure of BOOTSTRAPPED: difference to the first arm, and the
    ends of its 95 % interval. Both had the same requests, so the resamples are paired."""
    base = per_request([(run.header, run.records) for run in arms[0].runs])
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for arm in arms[1:]:
        own = per_request([(run.header, run.records) for run in arm.runs])
        found[arm.name] = {}
        for name in BOOTSTRAPPED:
            if len(own[name]) != len(base[name]):
                continue
            difference = own[name] - base[name]
            low, high = interval_of(name, difference, lowest=-100.0)
            found[arm.name][name] = (float(np.mean(difference)), low, high)
    return found


def best_of(row: ReportRow, arms: Sequence[Arm]) -> set[int]:
    """Columns that share the best value as shown; none when all do."""
    values = [getattr(arm.summary, row.field) for arm in arms]
    if not row.better or len(arms) < 2 or None in values:
        return set()
    shown = [round(row.better * value, row.digits) for value in values]
    best = {i for i, value in enumerate(shown) if value == max(shown)}
    return best if len(best) < len(arms) else set()


def headline(groups: Mapping[float, Sequence[Arm]]) -> float:
    """The load that a report is about: of those with the most arms the one nearest to 0.9."""
    most = max(len(arms) for arms in groups.values())
    candidates = [load for load, arms in groups.items() if len(arms) == most]
    return min(candidates, key=lambda load: (abs(load - HEADLINE_LOAD), load))


def document(
    groups: Mapping[float, Sequence[Arm]], extras: Extras, overlooked: Sequence[str] = ()
) -> dict[str, Any]:
    """report.json: `arms`, `headers`, `gains` and `fidelity` are those of the headline load; all
    loads are below `loads` where there are several."""
    loads = {f"{load:g}": _of_load(load, arms, extras) for load, arms in groups.items()}
    main = headline(groups)
    return {
        "schema": SCHEMA,
        "workload": subtitle(groups[main]),
        "emulated": groups[main][0].header.emulated,
        **loads[f"{main:g}"],
        "goodput": extras.goodput,
        "differences": list(overlooked),
        "loads": loads if len(loads) > 1 else {},
    }


def _of_load(load: float, arms: Sequence[Arm], extras: Extras) -> dict[str, Any]:
    return {
        "arms": {arm.name: msgspec.to_builtins(arm.summary) for arm in arms},
        "gains_over": arms[0].name,
        "gains": gains(arms),
        "fidelity": extras.fidelity.get(load, {}),
        "simulated": extras.simulated.get(load, {}),
        "headers": {
            arm.name: [msgspec.to_builtins(run.header) for run in arm.runs] for arm in arms
        },
        "left_out": {
            arm.name: [msgspec.to_builtins(header) for header in arm.left_out]
            for arm in arms
            if arm.left_out
        },
    }
