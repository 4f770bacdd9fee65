"""Colours, style and PNG encoding that all plots of a report share."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kairos.extras import bench_extra

# Okabe and Ito's palette, which readers with any colour vision can tell apart. The first arm is the
# baseline, in grey.
_COLOURS = ("#7f7f7f", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")
SLO_COLOUR = "#111111"
_STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
}


def colour(i: int) -> str:
    """Return the colour of the i-th arm."""
    return _COLOURS[i % len(_COLOURS)]


def dashes(i: int) -> str:
    """Return the line style of the i-th arm; it changes when the colours repeat."""
    return _DASHES[i // len(_COLOURS) % len(_DASHES)]


def png(
    shape: tuple[int, int],
    size: tuple[float, float],
    title: str,
    draw: Callable[[Any], None],
    share_x: bool = False,
) -> bytes:
    """Draw a plot.

    Args:
        shape: rows and columns of axes.
        size: width and height in inches.
        title: text above all axes.
        draw: fills the axes, an array of `shape`.
        share_x: whether all axes share their x axis.

    Returns:
        The plot as PNG.

    Raises:
        InputError: the bench extra is not installed.
    """
    with bench_extra("a plot"):
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt
        from matplotlib.layout_engine import ConstrainedLayoutEngine

    spacing = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.03, hspace=0.04)
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(
            *shape, figsize=size, layout=spacing, squeeze=False, sharex=share_x
        )
        figure.suptitle(title, x=0.012, ha="left", fontsize=11.5, color="#444444")
        draw(axes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        plt.close(figure)
    return buffer.getvalue()


def legend_below(axes: Any, distance: float, columns: int = 6) -> None:
    """Add a legend below the axes, where it hides no point."""
    axes.legend(
        loc="upper left", bbox_to_anchor=(-0.02, -distance), ncols=columns, handlelength=1.6,
        columnspacing=1.2, markerscale=1.5,
    )  # fmt: skip


def slo_line(axes: Any, at: float) -> None:
    """Add a dashed vertical line at the SLO."""
    axes.axvline(at, color=SLO_COLOUR, linewidth=1, linestyle="--")
    axes.annotate(
        "SLO", (at, 0.0), (4, 4), ha="left", va="bottom", fontsize=10,
        xycoords=("data", "axes fraction"), textcoords="offset points",
    )  # fmt: skip


def cumulative(axes: Any, values: Sequence[float], total: int, **line: Any) -> None:
    """Add the cumulative share of `total`.

    Infinite values stand for requests that failed, so with them the curve ends below 100 %.
    """

    ordered = np.sort(np.asarray([value for value in values if np.isfinite(value)]))
    share = 100 * np.arange(1, len(ordered) + 1) / max(total, 1)
    axes.step(ordered, share, where="post", linewidth=1.8, **line)
