"""All figures of a record as Markdown, under a heading of its own."""

from collections.abc import Mapping
from typing import Any

from kairos.replay.evaluation.columns import ATTAINMENT_COLUMNS, TIME_COLUMNS
from kairos.replay.evaluation.markdown import (
    BASELINE,
    arm_table,
    class_table,
    engine_gain_table,
    gain_table,
    load_table,
    simulated_arm_table,
)
from kairos.replay.evaluation.records import EngineLoad, EngineRecord, SimulatedRecord
from kairos.replay.evaluation.series import attainment_points
from kairos.replay.report.goodput import in_report

MAIN_LOAD = "0.9"
BASELINE_PERCENT = 60
COMMITS = "Arms ran on different commits of Kairos; upstream's servers did not change in between."


def engine_details(name: str, record: EngineRecord) -> str:
    """All tables of one replay."""
    parts = [f"### {name} ({record.kind})", "", f"{record.workload}.", ""]
    for load, found in record.by_load().items():
        if record.loads:
            offered = found.offered_work()
            parts += [f"Load {load}, {offered.requests} requests in {offered.span_s:.0f} s:", ""]
        parts += [arm_table(found.arms, ATTAINMENT_COLUMNS, intervals=True), ""]
        parts += [arm_table(found.arms, TIME_COLUMNS), ""]
        if any(own.classes for own in found.arms.values()):
            parts += ["By class, TTFT / TPOT / e2e %:", "", class_table(found.arms), ""]
        if gains := engine_gain_table(found, load):
            parts += ["Gain over fcfs, and over the best of upstream here:", "", gains, ""]
        if shown := _fidelity(found):
            parts += [
                f"Fidelity, simulator minus engine, points of TTFT / TPOT / e2e: {shown}.",
                "",
            ]
        parts += [f"**{arm}: {own.note}**\n" for arm, own in found.arms.items() if own.note]
        for arm, runs in found.left_out.items():
            parts += [f"**{arm}: {len(runs)} runs did not count and are left out**\n"]
    parts += _goodput(record.goodput)
    if record.differences:
        parts += [COMMITS, ""]
    return "\n".join(parts)


def simulated_details(record: SimulatedRecord) -> str:
    """All tables of one simulated trace."""
    stage = record.stage
    if record.prefill_load not in (None, 1.0):
        stage += f"; its load 1 is a prefill load of {record.prefill_load:.3f}"
    at = f"{record.baseline_load:g}"
    parts = [
        f"### {record.label} (simulated)",
        "",
        f"First {record.requests:,} requests of `{record.trace}`, SLO set {record.slo_set}, TPOT "
        f"{record.tpot_ms:g} ms, 1P1D, profile `{record.profile}`; the busier stage is {stage}.",
        "",
        f"Load {MAIN_LOAD}:",
        "",
        simulated_arm_table(record.loads[MAIN_LOAD]),
        "",
    ]
    if at in record.loads:
        shown = {load: record.loads[load] for load in dict.fromkeys((at, "0.9", "1.1"))}
        parts += [
            "The paper's table: gain over FCFS with continuous batching, and over the upstream "
            f"configuration with the best e2e attainment. {at} is the largest load found at which "
            f"FCFS meets both SLOs for at least {BASELINE_PERCENT} % of the requests: "
            f"{record.loads[at][BASELINE]['e2e_attainment']:.1f} %.",
            "",
            gain_table(shown, "tokens_per_busy_s"),
            "",
        ]
    parts += ["e2e attainment, %, over load:", "", load_table(record.loads), ""]
    goodput = ", ".join(f"{arm} {load:.2f}" for arm, load in record.goodput.items())
    parts += [f"Goodput, largest load with 90 % e2e (within 5 %): {goodput}.", ""]
    return "\n".join(parts)


def _fidelity(found: EngineLoad) -> str:
    return ", ".join(
        f"{arm} " + " / ".join(f"{one:+.1f}" for one in attainment_points(points).values())
        for arm, points in found.fidelity.items()
        if points
    )


def _goodput(goodput: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each target and instrument."""
    lines: dict[str, list[str]] = {}
    for arm, own in goodput.items():
        for result in own["loads"] or ():
            target = f"largest load with {result['target']:g} % e2e, {own['in']}"
            lines.setdefault(target, []).append(f"{arm} {in_report(result)}")
    return [f"Goodput, {target}: {', '.join(found)}.\n" for target, found in lines.items()]
