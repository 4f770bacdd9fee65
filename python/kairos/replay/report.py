"""Put the arms of a replay side by side: terminal table, report.json, PNG and HTML page."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kairos.errors import InputError
from kairos.replay.record import Header, Record
from kairos.replay.summary import Summary

if TYPE_CHECKING:
    from rich.table import Table

_MISSING = "–"


@dataclass(frozen=True, slots=True)
class Arm:
    """One server configuration's run."""

    header: Header
    records: Sequence[Record]
    summary: Summary


@dataclass(frozen=True, slots=True)
class Row:
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
        return _MISSING if value is None else f"{value:,.{self.digits}f}{self.unit}"


ROWS = (
    Row("TTFT attainment", "ttft_attainment", 1, 1, " %"),
    Row("TPOT attainment", "tpot_attainment", 1, 1, " %"),
    Row("e2e attainment (both)", "e2e_attainment", 1, 1, " %"),
    Row("TTFT attainment, longest 10 %", "longest10_ttft_attainment", 1, 1, " %"),
    Row("TTFT p50", "ttft_p50_s", 2, -1, " s"),
    Row("TTFT p99", "ttft_p99_s", 2, -1, " s"),
    Row("TPOT p50", "tpot_p50_ms", 1, -1, " ms"),
    Row("TPOT p99", "tpot_p99_ms", 1, -1, " ms"),
    Row("longest pause between tokens", "max_stall_s", 2, -1, " s"),
    Row("tokens/s that met both SLOs", "goodput_tokens_per_s", 0, 1),
    Row("tokens/s", "tokens_per_s", 0, 1),
    Row("prompt tokens from prefix cache", "prefix_hit_percent", 1, 0, " %"),
    Row("requests", "requests", 0),
    Row("failures", "failures", 0, -1),
    Row("send lag p99 (client)", "send_lag_p99_ms", 1, 0, " ms"),
)


_SAME_WORK = (
    *("trace_sha256", "start_s", "load", "instances", "time_scale", "span_s"),
    *("slo_set", "tpot_ms", "seed", "profile", "emulated"),
)


def check_comparable(arms: Sequence[Arm]) -> None:
    """Arms of one report must have been given the same work.

    Raises:
        InputError: no arm, or headers that differ in trace, load, SLOs, seed or profile.
    """
    if not arms:
        raise InputError("a report needs at least one arm")
    first = arms[0].header
    for arm in arms[1:]:
        for field in _SAME_WORK:
            one, other = getattr(first, field), getattr(arm.header, field)
            if one != other:
                raise InputError(
                    f"arms {first.arm} and {arm.header.arm} cannot be compared: {field} is "
                    f"{one!r} and {other!r}"
                )


def subtitle(arms: Sequence[Arm]) -> str:
    """The workload in one line."""
    h = arms[0].header
    tpot = "TPOT 25/50/150 ms" if h.slo_set == "tiers" else f"TPOT {h.tpot_ms:g} ms"
    clock = f"emulated with profile {h.profile}" if h.emulated else f"profile {h.profile}"
    return (
        f"{h.trace}, {arms[0].summary.requests} requests in {h.span_s:.0f} s, load {h.load:g}, "
        f"SLO {h.slo_set} + {tpot}, {h.instances}, {clock}"
    )


def terminal_table(arms: Sequence[Arm]) -> "Table":
    """Rows of ROWS, a column per arm; the best of a row is bold where there is something to win."""
    from rich.table import Table

    table = Table()
    table.add_column("")
    for arm in arms:
        table.add_column(arm.header.arm, justify="right")
    for row in ROWS:
        best = _best(row, arms)
        cells = [row.text(arm.summary) for arm in arms]
        table.add_row(
            row.label,
            *(f"[bold]{cell}[/bold]" if i in best else cell for i, cell in enumerate(cells)),
        )
    return table


def write_report(arms: Sequence[Arm], folder: Path) -> None:
    """Write report.json, report.png and report.html into `folder`.

    Raises:
        InputError: the arms cannot be compared.
    """
    from kairos.replay.plots import overview

    check_comparable(arms)
    png = overview(arms)
    (folder / "report.png").write_bytes(png)
    document = {
        "schema": 1,
        "workload": subtitle(arms),
        "emulated": arms[0].header.emulated,
        "arms": {arm.header.arm: msgspec.to_builtins(arm.summary) for arm in arms},
        "headers": {arm.header.arm: msgspec.to_builtins(arm.header) for arm in arms},
    }
    (folder / "report.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
    )
    (folder / "report.html").write_text(_page(arms, png), encoding="utf-8")


def _page(arms: Sequence[Arm], png: bytes) -> str:
    import jinja2

    source = (resources.files("kairos.replay") / "report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(source).render(
        arms=arms,
        subtitle=subtitle(arms),
        emulated=arms[0].header.emulated,
        rows=[_page_row(row, arms) for row in ROWS],
        classes=sorted({name for arm in arms for name in arm.summary.classes}),
        image=base64.b64encode(png).decode("ascii"),
        header=arms[0].header,
    )


def _page_row(row: Row, arms: Sequence[Arm]) -> dict[str, Any]:
    best = _best(row, arms)
    return {
        "label": row.label,
        "cells": [(row.text(arm.summary), i in best) for i, arm in enumerate(arms)],
    }


def _best(row: Row, arms: Sequence[Arm]) -> set[int]:
    """Columns that share the best value as shown; none when all do."""
    values = [getattr(arm.summary, row.field) for arm in arms]
    if not row.better or len(arms) < 2 or None in values:
        return set()
    shown = [round(row.better * value, row.digits) for value in values]
    best = {i for i, value in enumerate(shown) if value == max(shown)}
    return best if len(best) < len(arms) else set()
