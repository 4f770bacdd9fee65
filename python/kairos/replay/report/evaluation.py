"""The evaluation's tables: figures of the simulator, records of the engine, Markdown of both."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from kairos.errors import InputError
from kairos.latency import Profile
from kairos.replay.plan.arms import arm_spec
from kairos.replay.report.goodput import in_report, largest_load
from kairos.sim.scenario import Scenario, decode_capacity_per_s
from kairos.sim.simulation import simulate
from kairos.sim.summary import summarise
from kairos.workload.load import scale_to_load
from kairos.workload.slo_sets import assign_slos
from kairos.workload.trace import Trace

UPSTREAM = ("fcfs", "lpm", "hrrn", "sjf", "fcfs-cap32", "sjf-cap64")
KAIROS = ("kairos-urgency", "kairos-slack", "kairos", "kairos-hold")
LOADS = (0.7, 0.9, 1.1)
MAIN_LOAD = 0.9
BASELINE = "fcfs"
BASELINE_PERCENT = 60.0
SEARCHED = ("fcfs", "sjf", "kairos", "kairos-hold")
GOODPUT_PERCENT = 90.0
_TOLERANCE = 0.05
_BASELINE_TOLERANCE = 0.01  # attainment can fall steeply there
GAINING = ("kairos", "kairos-hold")
SHOWN = (
    ("ttft_attainment", "TTFT %", 1),
    ("tpot_attainment", "TPOT %", 1),
    ("e2e_attainment", "e2e %", 1),
    ("goodput_tokens_per_s", "good tok/s", 0),
    ("tokens_per_busy_s", "decode tok/s", 0),
    ("longest10_ttft_attainment", "longest 10 %: TTFT %", 1),
    ("longest10_ttft_p99_s", "longest 10 %: TTFT p99 s", 1),
)


ATTAINED = (
    ("ttft_attainment", "TTFT %", 1),
    ("tpot_attainment", "TPOT %", 1),
    ("tpot_attainment_engine_clock", "TPOT %, engine's clock", 1),
    ("e2e_attainment", "e2e %", 1),
    ("longest10_ttft_attainment", "longest 10 %: TTFT %", 1),
    ("goodput_tokens_per_s", "good tok/s", 0),
    ("decode_tokens_per_busy_s", "decode tok/s", 0),
    ("runs", "runs", 0),
)
TIMES = (
    ("ttft_p50_s", "TTFT p50 s", 2),
    ("ttft_p99_s", "p99 s", 1),
    ("longest10_ttft_p99_s", "longest 10 %: p99 s", 1),
    ("max_ttft_over_slo", "worst / SLO", 1),
    ("tpot_p50_ms", "TPOT p50 ms", 1),
    ("tpot_p99_ms", "p99 ms", 1),
    ("max_stall_s", "longest pause s", 2),
    ("failures", "failures", 0),
    ("effective_load", "load found", 3),
    ("send_lag_p99_ms", "send lag p99 ms", 1),
)


class Simulated(msgspec.Struct, frozen=True, kw_only=True):
    """One trace in the simulator.

    Attributes:
        label: name for people.
        stage: the busier one at the loads given: "prefill" or "decode".
        prefill_load: at load 1; None in older records.
        loads: figures per load and arm.
        baseline_load: load at which the baseline meets both SLOs for BASELINE_PERCENT of requests.
        goodput: per arm, largest load with GOODPUT_PERCENT.
    """

    kind: str = "simulated"
    label: str
    trace: str
    sha256: str
    requests: int
    slo_set: str
    tpot_ms: float
    profile: str
    git_commit: str
    stage: str
    prefill_load: float | None = None
    baseline_load: float
    loads: dict[str, dict[str, dict[str, float]]]
    goodput: dict[str, float]


def simulated(
    label: str,
    trace: Trace,
    profile: Profile,
    *,
    requests: int,
    slo_set: str,
    tpot_ms: float,
    git_commit: str,
    progress: Callable[[str], None] = lambda _: None,
) -> Simulated:
    """Every arm at every load, on the first `requests` of a trace, one prefill and one decode
    instance. Load is that of the busier stage, so that conversations that prefill limits and
    reasoning that decode limits are loaded alike."""
    kept = Trace(trace.name, trace.sha256, trace.requests[:requests])
    workload = scale_to_load(kept, 1.0, profile)
    slos = assign_slos(
        workload.trace.requests, workload.cached_tokens, profile, slo_set, tpot=tpot_ms
    )
    scenario = Scenario.of(workload.trace.requests, workload.cached_tokens, slos)
    rate = len(scenario) / float(scenario.arrival_s[-1])
    decode_load = rate / decode_capacity_per_s(scenario, profile)
    stretch = max(1.0, decode_load)

    def figures(arm: str, load: float) -> dict[str, float]:
        settings = arm_spec(arm, profile.name).settings(
            profile.kv.transfer_s(profile.limits.chunk_tokens)
        )
        if settings is None:
            raise InputError(f"arm {arm}: the simulator has no model of it")
        scaled = replace(scenario, arrival_s=scenario.arrival_s * (stretch / load))
        with np.errstate(all="raise", under="ignore"):
            found = summarise(simulate(scaled, settings, profile))
        progress(f"{label}, load {load:g}, {arm}: e2e {found['e2e_attainment']:.1f} %")
        return {name: round(float(found[name]), 3) for name, _, _ in SHOWN}

    baseline = largest_load(
        lambda load: figures(BASELINE, load)["e2e_attainment"],
        BASELINE_PERCENT,
        tolerance=_BASELINE_TOLERANCE,
    ).load
    loads = {
        f"{load:g}": {arm: figures(arm, load) for arm in (*UPSTREAM, *KAIROS)}
        for load in sorted({*LOADS, baseline})
        if load > 0.0
    }

    def searched(arm: str) -> float:
        known = {float(load): found[arm]["e2e_attainment"] for load, found in loads.items()}
        return largest_load(
            lambda load: figures(arm, load)["e2e_attainment"], GOODPUT_PERCENT, known, _TOLERANCE
        ).load

    return Simulated(
        label=label,
        trace=trace.name,
        sha256=trace.sha256,
        requests=len(kept.requests),
        slo_set=slo_set,
        tpot_ms=tpot_ms,
        profile=profile.name,
        git_commit=git_commit,
        stage="decode" if decode_load > 1.0 else "prefill",
        prefill_load=round(1.0 / stretch, 4),
        baseline_load=baseline,
        loads=loads,
        goodput={arm: searched(arm) for arm in SEARCHED},
    )


def best_upstream(figures: Mapping[str, Mapping[str, float]]) -> str:
    """The upstream arm with the highest e2e attainment; empty if there is none."""
    return max(
        (arm for arm in figures if not arm.startswith("kairos")),
        key=lambda arm: figures[arm]["e2e_attainment"],
        default="",
    )


def simulated_markdown(found: Simulated) -> str:
    """Tables of one trace."""
    asked = found.prefill_load
    prefill = (
        "" if asked is None or asked == 1.0 else f"; its load 1 is a prefill load of {asked:.3f}"
    )
    parts = [
        f"### {found.label} (simulated)",
        "",
        f"First {found.requests:,} requests of `{found.trace}`, SLO set {found.slo_set}, TPOT "
        f"{found.tpot_ms:g} ms, 1P1D, profile `{found.profile}`; the busier stage is "
        f"{found.stage}{prefill}.",
        "",
        f"Load {MAIN_LOAD:g}:",
        "",
        _arm_table(found.loads[f"{MAIN_LOAD:g}"], SHOWN),
        "",
    ]
    at = f"{found.baseline_load:g}"
    if at in found.loads:
        parts += [
            "The paper's table: gain over FCFS with continuous batching, and over the upstream "
            f"configuration with the best e2e attainment. {at} is the largest load found at which "
            f"FCFS meets both SLOs for at least {BASELINE_PERCENT:g} % of the requests: "
            f"{found.loads[at][BASELINE]['e2e_attainment']:.1f} %.",
            "",
            _gain_table({load: found.loads[load] for load in dict.fromkeys((at, "0.9", "1.1"))}),
            "",
        ]
    parts += ["e2e attainment, %, over load:", "", _load_table(found.loads), ""]
    goodput = ", ".join(f"{arm} {load:.2f}" for arm, load in found.goodput.items())
    parts += [
        f"Goodput, largest load with {GOODPUT_PERCENT:g} % e2e (within {100 * _TOLERANCE:g} %): "
        f"{goodput}.",
        "",
    ]
    return "\n".join(parts)


def engine_markdown(name: str, report: Mapping[str, Any]) -> str:
    """Tables of one kept report.json.

    Raises:
        InputError: it is none, or of another schema.
    """
    try:
        return _engine_markdown(name, report)
    except (KeyError, TypeError) as error:
        raise InputError(f"{name}: not a report.json of this version ({error!r})") from error


def _engine_markdown(name: str, report: Mapping[str, Any]) -> str:
    kind = "emulated" if report["emulated"] else "measured"
    parts = [f"### {name} ({kind})", "", f"{report['workload']}.", ""]
    for load, found in (report["loads"] or {"": report}).items():
        arms: Mapping[str, Mapping[str, Any]] = found["arms"]
        if load:
            header = next(own[0] for own in found["headers"].values() if own)
            span = f"{header['requests']} requests in {header['span_s']:.0f} s"
            parts += [f"Load {load}, {span}:", ""]
        parts += [_arm_table(arms, ATTAINED, intervals=True), "", _arm_table(arms, TIMES), ""]
        if any(own["classes"] for own in arms.values()):
            parts += ["By class, TTFT / TPOT / e2e %:", "", _class_table(arms), ""]
        shown_load = load or f"{next(iter(arms.values()))['load']:g}"
        if BASELINE in arms and any(arm in arms for arm in GAINING):
            gain = _gain_table({shown_load: arms}, "decode_tokens_per_busy_s")
            parts += ["Gain over fcfs, and over the best of upstream here:", "", gain, ""]
        fidelity = {arm: own for arm, own in found["fidelity"].items() if own}
        if fidelity:
            shown = ", ".join(
                f"{arm} {own['ttft_attainment']:+.1f} / {own['tpot_attainment']:+.1f} / "
                f"{own['e2e_attainment']:+.1f}"
                for arm, own in fidelity.items()
            )
            parts += [
                f"Fidelity, simulator minus engine, points of TTFT / TPOT / e2e: {shown}.",
                "",
            ]
        notes = {arm: own["note"] for arm, own in arms.items() if own["note"]}
        parts += [f"**{arm}: {note}**\n" for arm, note in notes.items()]
        for arm, headers in found.get("left_out", {}).items():
            parts += [f"**{arm}: {len(headers)} runs did not count and are left out**\n"]
    parts += _goodput_lines(report["goodput"])
    if overlooked := report.get("differences"):
        parts += ["Compared all the same (`--force`):", "", *(f"- {one}" for one in overlooked), ""]
    return "\n".join(parts)


def _goodput_lines(goodput: Mapping[str, Any]) -> list[str]:
    """A line per target and instrument."""
    lines: dict[str, list[str]] = {}
    for arm, own in goodput.items():
        for result in own["loads"] or ():
            what = f"largest load with {result['target']:g} % e2e, {own['in']}"
            lines.setdefault(what, []).append(f"{arm} {in_report(result)}")
    return [f"Goodput, {what}: {', '.join(found)}.\n" for what, found in lines.items()]


def kept(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report.json without what only repeats (the simulator's raw figures, and the headers of all
    runs but the first of each arm) and without folders of the machine that it was made on."""

    def slim(part: Mapping[str, Any]) -> dict[str, Any]:
        headers = {arm: _without_folders(runs[:1]) for arm, runs in part["headers"].items()}
        return {**part, "simulated": {}, "headers": headers}

    return slim({**report, "loads": {load: slim(own) for load, own in report["loads"].items()}})


def _without_folders(value: Any) -> Any:
    """`value` with every absolute path in it cut down to its last part."""
    if isinstance(value, Mapping):
        return {name: _without_folders(own) for name, own in value.items()}
    if isinstance(value, list):
        return [_without_folders(own) for own in value]
    if isinstance(value, str) and value.startswith("/"):
        return value.rpartition("/")[2]
    return value


def _arm_table(
    arms: Mapping[str, Mapping[str, Any]],
    fields: Sequence[tuple[str, str, int]],
    intervals: bool = False,
) -> str:
    rows = [["", *(label for _, label, _ in fields)]]
    for arm, figures in arms.items():
        cells = [arm]
        for name, _, digits in fields:
            value = figures[name]
            text = "–" if value is None else f"{value:,.{digits}f}"
            if intervals and name in figures["intervals"] and name.endswith("attainment"):
                low, high = figures["intervals"][name]
                text += f" ({low:.1f}–{high:.1f})"
            cells.append(text)
        rows.append(cells)
    return _markdown(rows)


def _class_table(arms: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(next(iter(arms.values()))["classes"])
    rows = [["", *names]]
    for arm, figures in arms.items():
        cells = [arm]
        for name in names:
            own = figures["classes"][name]
            shares = (own[f"{what}_attainment"] for what in ("ttft", "tpot", "e2e"))
            cells.append(" / ".join(f"{share:.1f}" for share in shares))
        rows.append(cells)
    return _markdown(rows)


def _gain_table(
    loads: Mapping[str, Mapping[str, Mapping[str, Any]]], decode: str = "tokens_per_busy_s"
) -> str:
    """Args:
    decode: name of the figure that has the tokens per second of decode time.
    """
    rows = [
        ["load", "arm", "against", "TTFT points", "TPOT points", "e2e points", "decode tok/s",
         "good tok/s"]
    ]  # fmt: skip
    for load, figures in loads.items():
        for arm in (arm for arm in GAINING if arm in figures):
            for other in dict.fromkeys((BASELINE, best_upstream(figures))):
                own, base = figures[arm], figures[other]
                points = [
                    f"{own[name] - base[name]:+.1f}"
                    for name in ("ttft_attainment", "tpot_attainment", "e2e_attainment")
                ]
                rates = [
                    f"{100 * (own[name] / base[name] - 1):+.0f} %"
                    if base[name] and own[name] is not None
                    else "–"
                    for name in (decode, "goodput_tokens_per_s")
                ]
                rows.append([load, arm, other, *points, *rates])
    return _markdown(rows, text_columns=3)


def _load_table(loads: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    arms = list(next(iter(loads.values())))
    ordered = sorted(loads, key=float)
    rows = [["", *ordered]]
    for arm in arms:
        rows.append([arm, *(f"{loads[load][arm]['e2e_attainment']:.1f}" for load in ordered)])
    return _markdown(rows)


def _markdown(rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    head, *body = rows
    rule = ["---" if i < text_columns else "---:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *body))
