"""Table and heat map of a grid of regret."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from kairos.sim.regret import RegretCell

_LINEAR_POINTS = 0.3  # up to here the colours are linear, beyond logarithmic
_MAX_POINTS = 100.0
_DARK = 0.45  # luminance below which a label is white


def table_of_regret(cells: Sequence[RegretCell], limit: float) -> Table:
    """Return a table with one row per trace and TPOT objective, and one column per load.

    Args:
        cells: of the grid.
        limit: regret above which a value is marked, points.
    """
    loads = sorted({cell.load for cell in cells})
    table = Table(title="regret in points of end-to-end attainment, simulated; negative is a gain")
    table.add_column("trace")
    table.add_column("TPOT ms", justify="right")
    for load in loads:
        table.add_column(f"load {load:g}", justify="right")
    value_of = {(cell.trace, cell.tpot_ms, cell.load): cell.regret for cell in cells}
    for trace, tpot_ms in dict.fromkeys((cell.trace, cell.tpot_ms) for cell in cells):
        values = [value_of[trace, tpot_ms, load] for load in loads]
        marked = [f"[bold]{_text(v)} >[/bold]" if v > limit else _text(v) for v in values]
        table.add_row(trace, f"{tpot_ms:g}", *marked)
    return table


def plot_regret(cells: Sequence[RegretCell], path: Path) -> None:
    """Draw a heat map: a panel per trace, rows of TPOT objectives, columns of loads.

    Args:
        cells: of the grid.
        path: the image file to write; the suffix selects the format.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.colors import SymLogNorm

    traces = list(dict.fromkeys(cell.trace for cell in cells))
    columns = min(3, len(traces))
    rows = -(-len(traces) // columns)
    style: Any = {"svg.hashsalt": "kairos", "svg.fonttype": "none", "font.size": 9}
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            rows, columns, figsize=(4.2 * columns + 1.2, 2.9 * rows), squeeze=False,
            layout="constrained",
        )  # fmt: skip
        norm = SymLogNorm(_LINEAR_POINTS, vmin=-_MAX_POINTS, vmax=_MAX_POINTS)
        for axis, trace in zip(axes.flat, traces, strict=False):
            image = _panel(axis, [cell for cell in cells if cell.trace == trace], norm)
        for axis in axes.flat[len(traces) :]:
            axis.set_visible(False)
        bar = figure.colorbar(image, ax=axes, ticks=[-100, -10, -1, 0, 1, 10, 100], shrink=0.8)
        bar.set_label("gain of Kairos   |   regret, points", fontsize=9)
        bar.ax.set_yticklabels(["-100", "-10", "-1", "0", "1", "10", "100"])
        bar.minorticks_off()
        figure.suptitle(
            "Best of SGLang's orders minus Kairos, end-to-end attainment (simulated)", fontsize=11
        )
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=120, metadata=metadata)
        plt.close(figure)


def _panel(axis: Any, cells: Sequence[RegretCell], norm: Any) -> Any:
    loads = sorted({cell.load for cell in cells})
    objectives = sorted({cell.tpot_ms for cell in cells})
    values = [[0.0] * len(loads) for _ in objectives]
    for cell in cells:
        values[objectives.index(cell.tpot_ms)][loads.index(cell.load)] = cell.regret
    # Purple and orange differ for all common kinds of colour blindness.
    image = axis.imshow(values, cmap="PuOr_r", norm=norm, aspect="auto")
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            red, green, blue, _ = image.cmap(norm(value))
            dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < _DARK
            axis.text(
                column, row, _text(value), ha="center", va="center",
                color="white" if dark else "black",
            )  # fmt: skip
    axis.set_xticks(range(len(loads)), [f"{load:g}" for load in loads])
    axis.set_yticks(range(len(objectives)), [f"{ms:g} ms" for ms in objectives])
    axis.set_xlabel("load of the busier stage")
    axis.set_ylabel("TPOT objective")
    axis.set_title(cells[0].trace, fontsize=9)
    return image


def _text(value: float) -> str:
    """Two decimals for small values; no minus sign in front of zero."""
    text = f"{value:.2f}" if abs(value) < 9.995 else f"{value:.1f}"
    return "0" if float(text) == 0.0 else text
