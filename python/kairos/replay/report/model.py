"""The report as data: the rows of its table, and report.json."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from kairos.replay.report.intervals import BOOTSTRAPPED, interval_of, per_request
from kairos.replay.report.results import ArmResult
from kairos.replay.report.summary import ArmSummary

SCHEMA = 2
HEADLINE_LOAD = 0.9
MISSING = "–"


@dataclass(frozen=True, slots=True)
class ReportRow:
    """A row of the table.

    Attributes:
        label: text in the first column.
        field: attribute of ArmSummary.
        digits: decimals.
        better: 1 if more is better, -1 if less is, 0 if neither.
        unit: text behind each value.
    """

    label: str
    field: str
    digits: int
    better: int = 0
    unit: str = ""

    def text(self, summary: ArmSummary) -> str:
        """Return the value of an arm as shown."""
        value = getattr(summary, self.field)
        if value is None:
            return MISSING
        return f"{value:,.{self.digits}f}{self.unit}" if value < math.inf else "never"

    def interval(self, summary: ArmSummary) -> str:
        """Return the confidence interval of an arm; empty where there is none."""
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
    ReportRow("requested load", "load", 2),
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
    """Figures that are computed beside the runs.

    Attributes:
        simulated: figures of the simulator by load and arm.
        fidelity: simulator minus engine by load and arm; None where the simulator has no model.
        goodput: per arm, largest loads at which a share of requests still meets both SLOs.
    """

    simulated: Mapping[float, Mapping[str, dict[str, Any] | None]]
    fidelity: Mapping[float, Mapping[str, dict[str, float | None] | None]]
    goodput: Mapping[str, Any]


NO_EXTRAS = Extras({}, {}, {})


def subtitle(arms: Sequence[ArmResult]) -> str:
    """Return the workload in one line."""
    h = arms[0].header
    tpot = "TPOT 25/50/150 ms" if h.slo_set == "tiers" else f"TPOT {h.tpot_ms:g} ms"
    clock = f"emulated with profile {h.profile.name}" if h.emulated else f"profile {h.profile.name}"
    ranks = f" with DP {h.dp_attention}" if h.dp_attention != "1" else ""
    slowed = f", slowed down {h.dilate:g} times" if h.dilate != 1.0 else ""
    return (
        f"{h.trace}, {h.requests} requests in {h.span_s:.0f} s, load {h.load:g}, "
        f"SLO {h.slo_set} + {tpot}, {h.instances}{ranks}, {clock}{slowed}"
    )


def gains(arms: Sequence[ArmResult]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Return the differences of each arm to the first arm.

    All arms had the same requests, so the resamples are paired.

    Returns:
        By arm and figure of BOOTSTRAPPED: the difference and the ends of its 95 % interval.
    """
    base = per_request([run.records for run in arms[0].runs])
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for arm in arms[1:]:
        own = per_request([run.records for run in arm.runs])
        found[arm.name] = {}
        for name in BOOTSTRAPPED:
            if len(own[name]) != len(base[name]):
                continue
            difference = own[name] - base[name]
            low, high = interval_of(name, difference, lowest=-100.0)
            found[arm.name][name] = (float(np.mean(difference)), low, high)
    return found


def best_of(row: ReportRow, arms: Sequence[ArmResult]) -> set[int]:
    """Return the columns that share the best value as shown; empty if all columns do."""
    values = [getattr(arm.summary, row.field) for arm in arms]
    if not row.better or len(arms) < 2 or None in values:
        return set()
    shown = [round(row.better * value, row.digits) for value in values]
    best = {i for i, value in enumerate(shown) if value == max(shown)}
    return best if len(best) < len(arms) else set()


def headline(groups: Mapping[float, Sequence[ArmResult]]) -> float:
    """Return the load that a report is about: of those with the most arms, the nearest to 0.9."""
    most = max(len(arms) for arms in groups.values())
    candidates = [load for load, arms in groups.items() if len(arms) == most]
    return min(candidates, key=lambda load: (abs(load - HEADLINE_LOAD), load))


def document(
    groups: Mapping[float, Sequence[ArmResult]], extras: Extras, overlooked: Sequence[str] = ()
) -> dict[str, Any]:
    """Return report.json.

    The keys `arms`, `headers`, `gains` and `fidelity` are those of the headline load. If there are
    several loads, all are below `loads`.

    Args:
        groups: arms by load.
        extras: figures beside the runs.
        overlooked: differences between runs that --force lets pass.
    """
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


def _of_load(load: float, arms: Sequence[ArmResult], extras: Extras) -> dict[str, Any]:
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
