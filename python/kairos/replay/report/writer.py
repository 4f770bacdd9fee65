"""The files of a report, and its table in the terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kairos.extras import bench_extra
from kairos.replay.report.model import NO_EXTRAS, ROWS, Extras, best_of, document
from kairos.replay.report.page import page
from kairos.replay.report.plots import plots
from kairos.replay.report.results import ArmResult, by_load, check_comparable

if TYPE_CHECKING:
    from rich.table import Table


def write_report(
    arms: Sequence[ArmResult], folder: Path, extras: Extras = NO_EXTRAS, *, force: bool = False
) -> None:
    """Write report.json, the PNGs and report.html into `folder`.

    Args:
        arms: arms of one load or several.
        folder: existing folder.
        extras: figures beside the runs.
        force: compare runs of other work; the report names the differences.

    Raises:
        InputError: the arms of a load cannot be compared, or the bench extra is missing.
    """
    groups = by_load(arms)
    overlooked = [
        text for group in groups.values() for text in check_comparable(group, force=force)
    ]
    images = plots(groups, extras)
    for name, png in images.items():
        (folder / f"{name}.png").write_bytes(png)
    encoded = msgspec.json.encode(document(groups, extras, overlooked))
    (folder / "report.json").write_bytes(msgspec.json.format(encoded, indent=2) + b"\n")
    (folder / "report.html").write_text(page(groups, extras, images, overlooked), encoding="utf-8")


def terminal_table(arms: Sequence[ArmResult]) -> "Table":
    """Return a table with a row per figure and a column per arm; the best of a row is bold.

    Raises:
        InputError: the bench extra is not installed.
    """
    with bench_extra("the table of a report"):
        from rich.table import Table

    table = Table()
    table.add_column("")
    for arm in arms:
        table.add_column(arm.name, justify="right")
    for row in ROWS:
        best = best_of(row, arms)
        cells = [row.text(arm.summary) for arm in arms]
        table.add_row(
            row.label,
            *(f"[bold]{cell}[/bold]" if i in best else cell for i, cell in enumerate(cells)),
        )
    return table
