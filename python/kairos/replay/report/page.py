"""report.html: one page that needs neither a network nor scripts."""

import base64
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from kairos.extras import bench_extra
from kairos.replay.report.bootstrap import DRAWS, block_length
from kairos.replay.report.goodput import TARGETS, in_report
from kairos.replay.report.intervals import BOOTSTRAPPED
from kairos.replay.report.model import (
    MISSING,
    ROWS,
    Extras,
    ReportRow,
    best_of,
    gains,
    headline,
    subtitle,
)
from kairos.replay.report.results import ArmResult
from kairos.replay.run import interference
from kairos.replay.run.header import RunHeader
from kairos.workload.slo_sets import in_words

_LABELS = {row.field: row for row in ROWS}


def page(
    groups: Mapping[float, Sequence[ArmResult]],
    extras: Extras,
    images: Mapping[str, bytes],
    overlooked: Sequence[str],
) -> str:
    """Return the whole report as HTML.

    Args:
        groups: arms by load.
        extras: figures beside the runs.
        images: PNGs by name, at least "report", "deciles" and "timeline".
        overlooked: differences between runs that --force lets pass.

    Raises:
        InputError: the bench extra is not installed.
    """
    with bench_extra("the report page"):
        import jinja2

    load = headline(groups)
    arms = groups[load]
    source = (resources.files("kairos.replay.report") / "report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    encoded = {name: base64.b64encode(png).decode("ascii") for name, png in images.items()}
    won = gains(arms)
    return environment.from_string(source).render(
        arms=arms,
        everyone=[arm for group in groups.values() for arm in group],
        subtitle=subtitle(arms),
        header=arms[0].header,
        slo=in_words(arms[0].header.slo_set, arms[0].header.tpot_ms),
        rows=[_row(row, arms) for row in ROWS],
        gains=won,
        gain_rows=[_gain_row(name, won) for name in BOOTSTRAPPED] if won else [],
        draws=DRAWS,
        block=block_length(arms[0].header.requests),
        images={"loads": "", "gantt": ""} | encoded,
        **_loads(groups),
        goodput=_goodput(extras),
        targets=TARGETS,
        decile_rows=_deciles(arms),
        classes=sorted({name for arm in arms for name in arm.summary.classes}),
        **_fidelity(extras, load),
        limits=interference,
        interference=_interference(groups),
        outcomes=[row for arm in arms for row in _outcomes(arm)],
        differences=overlooked,
    )


def _row(row: ReportRow, arms: Sequence[ArmResult]) -> dict[str, Any]:
    best = best_of(row, arms)
    return {
        "label": row.label,
        "cells": [
            (row.text(arm.summary), row.interval(arm.summary), i in best)
            for i, arm in enumerate(arms)
        ],
    }


def _gain_row(
    name: str, won: Mapping[str, Mapping[str, tuple[float, float, float]]]
) -> dict[str, Any]:
    row = _LABELS[name]
    cells = []
    for gain in won.values():
        if name not in gain:
            cells.append((MISSING, "", False))
            continue
        value, low, high = gain[name]
        interval = f"{low:+,.{row.digits}f} to {high:+,.{row.digits}f}"
        cells.append((f"{value:+,.{row.digits}f}", interval, low > 0.0 or high < 0.0))
    return {"label": row.label, "cells": cells}


def _loads(groups: Mapping[float, Sequence[ArmResult]]) -> dict[str, Any]:
    names = list(dict.fromkeys(arm.name for group in groups.values() for arm in group))
    rows = []
    for load, group in sorted(groups.items()):
        found = {arm.name: arm.summary.e2e_attainment for arm in group}
        rows.append((load, [f"{found[n]:.1f}" if n in found else MISSING for n in names]))
    return {"load_names": names, "load_rows": rows}


def _goodput(extras: Extras) -> list[tuple[str, str, list[str]]]:
    rows = []
    for name, found in extras.goodput.items():
        loads = found["loads"]
        if loads is not None:
            rows.append((name, found["in"], [in_report(result) for result in loads]))
    return rows


def _deciles(arms: Sequence[ArmResult]) -> list[tuple[str, list[str]]]:
    rows = []
    for i, first in enumerate(arms[0].summary.deciles):
        cells = []
        for arm in arms:
            own = arm.summary.deciles
            figures = (
                (own[i].ttft_attainment, own[i].tpot_attainment, own[i].e2e_attainment)
                if i < len(own)
                else ()
            )
            cells.append(" / ".join(f"{value:.0f}" for value in figures) or MISSING)
        rows.append((f"{first.shortest_tokens:,} – {first.longest_tokens:,}", cells))
    return rows


def _fidelity(extras: Extras, load: float) -> dict[str, Any]:
    found = extras.fidelity.get(load, {})
    if not any(found.values()):
        return {"fidelity": [], "fidelity_names": []}
    fields = dict.fromkeys(name for own in found.values() for name in own or {})
    rows = []
    for name in fields:
        values = [(own or {}).get(name) for own in found.values()]
        cells = [MISSING if value is None else f"{value:+.2f}" for value in values]
        rows.append((_LABELS[name].label, cells))
    return {"fidelity": rows, "fidelity_names": list(found)}


def _interference(groups: Mapping[float, Sequence[ArmResult]]) -> list[list[str]]:
    rows = []
    for arm in (arm for group in groups.values() for arm in group):
        rows += [_interference_row(arm.name, run.header, left_out=False) for run in arm.runs]
        rows += [_interference_row(arm.name, header, left_out=True) for header in arm.left_out]
    return rows


def _interference_row(name: str, header: RunHeader, left_out: bool) -> list[str]:
    found, device = header.interference, header.device

    def shown(value: float | None, unit: str, digits: int = 1) -> str:
        return MISSING if value is None else f"{value:.{digits}f}{unit}"

    verdict = "disturbed" if header.counts else "NOT VALID"
    if left_out:
        verdict += ", left out of all figures"
    return [
        f"{name}, load {header.load:g}, run {header.repeat}",
        shown(found.send_lag_p99_ms, " ms"),
        shown(found.cpu_pressure_percent, " %"),
        shown(found.others_cores, "", 2),
        shown(found.run_cores, "", 2),
        shown(found.device_lag_percent, " %"),
        shown(None if device is None else device.prefill_busy_percent, " %"),
        shown(None if device is None else device.decode_busy_percent, " %"),
        "; ".join((verdict, *header.problems)) if header.problems else "valid",
    ]


def _outcomes(arm: ArmResult) -> list[tuple[str, str, int, str]]:
    reasons: dict[str, str] = {}
    for record in arm.records:
        reasons.setdefault(record.outcome.value, record.reason)
    return [
        (arm.name, outcome, count, reasons[outcome])
        for outcome, count in arm.summary.outcomes.items()
    ]
