"""What all pictures of a report share: colours, style, PNG."""

import io
from collections.abc import Callable, Sequence
from typing import Any

# Okabe and Ito's palette: told apart with every kind of colour vision. The first arm is the
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
    """Of the i-th arm."""
    return _COLOURS[i % len(_COLOURS)]


def dashes(i: int) -> str:
    """Line style of the i-th arm: changes when the colours are used up."""
    return _DASHES[i // len(_COLOURS) % len(_DASHES)]


def png(
    shape: tuple[int, int],
    size: tuple[float, float],
    title: str,
    draw: Callable[[Any], None],
    share_x: bool = False,
) -> bytes:
    """A picture of `shape` rows and columns of axes, which `draw` fills, [rows, columns]."""
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
    """Outside of the axes, where it can hide no point."""
    axes.legend(
        loc="upper left", bbox_to_anchor=(-0.02, -distance), ncols=columns, handlelength=1.6,
        columnspacing=1.2, markerscale=1.5,
    )  # fmt: skip


def slo_line(axes: Any, at: float) -> None:
    """A dashed vertical line."""
    axes.axvline(at, color=SLO_COLOUR, linewidth=1, linestyle="--")
    axes.annotate(
        "SLO", (at, 0.0), (4, 4), ha="left", va="bottom", fontsize=10,
        xycoords=("data", "axes fraction"), textcoords="offset points",
    )  # fmt: skip


def cumulative(axes: Any, values: Sequence[float], total: int, **line: Any) -> None:
    """Cumulative share of `total`; what is infinite never happened, so the curve ends below 100."""
    import numpy as np

    ordered = np.sort(np.asarray([value for value in values if np.isfinite(value)]))
    share = 100 * np.arange(1, len(ordered) + 1) / max(total, 1)
    axes.step(ordered, share, where="post", linewidth=1.8, **line)
