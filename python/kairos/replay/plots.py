"""The picture of a report."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from kairos.replay.report import Arm

# Okabe and Ito's palette: told apart with every kind of colour vision. The first arm is the
# baseline, in grey.
_COLOURS = ("#7f7f7f", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_SLO = "#111111"
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


def overview(arms: Sequence["Arm"]) -> bytes:
    """Attainment, TTFT against its SLO, TTFT over prompt length and TPOT, as PNG bytes."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from kairos.replay.report import subtitle

    spacing = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.03, hspace=0.04)
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(14, 9.6), layout=spacing)
        figure.suptitle(subtitle(arms), x=0.012, ha="left", fontsize=11.5, color="#444444")
        _attainment(axes[0, 0], arms)
        _ttft_cdf(axes[0, 1], arms)
        _ttft_over_length(axes[1, 0], arms)
        _tpot_cdf(axes[1, 1], arms)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120)
        plt.close(figure)
    return buffer.getvalue()


def _colour(i: int) -> str:
    return _COLOURS[i % len(_COLOURS)]


def _attainment(axes: Any, arms: Sequence["Arm"]) -> None:
    groups = ("TTFT", "TPOT", "e2e (both)")
    width = 0.8 / len(arms)
    for i, arm in enumerate(arms):
        s = arm.summary
        heights = [s.ttft_attainment, s.tpot_attainment, s.e2e_attainment]
        places = np.arange(len(groups)) + (i - (len(arms) - 1) / 2) * width
        bars = axes.bar(places, heights, 0.92 * width, color=_colour(i), label=arm.header.arm)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=10 if len(arms) < 4 else 8)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylim(0, 108)
    axes.set_yticks(range(0, 101, 20))
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("% of all requests")
    axes.set_title("SLO attainment")
    _legend_below(axes, 0.09)


def _legend_below(axes: Any, distance: float) -> None:
    """Outside of the axes, where it can hide no point."""
    axes.legend(
        loc="upper left", bbox_to_anchor=(-0.02, -distance), ncols=6, handlelength=1.2,
        columnspacing=1.2, markerscale=1.5,
    )  # fmt: skip


def _slo_line(axes: Any, at: float) -> None:
    axes.axvline(at, color=_SLO, linewidth=1, linestyle="--")
    axes.annotate(
        "SLO", (at, 0.0), (4, 4), ha="left", va="bottom", fontsize=10,
        xycoords=("data", "axes fraction"), textcoords="offset points",
    )  # fmt: skip


def _ttft_cdf(axes: Any, arms: Sequence["Arm"]) -> None:
    for i, arm in enumerate(arms):
        ratios = [r.ttft_ms / r.slo_ttft_ms for r in arm.records if r.ttft_ms is not None]
        _steps(axes, ratios, len(arm.records), i, arm.header.arm)
    _slo_line(axes, 1.0)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("TTFT / its SLO  (left of 1: met)")
    _cdf_axes(axes, "Time to first token against the request's SLO")


def _tpot_cdf(axes: Any, arms: Sequence["Arm"]) -> None:
    tiers = len({r.slo_tpot_ms for arm in arms for r in arm.records}) > 1
    longest = 0.0
    for i, arm in enumerate(arms):
        done = [r for r in arm.records if r.tpot_ms is not None]
        values = [
            r.tpot_ms / r.slo_tpot_ms if tiers else r.tpot_ms for r in done if r.tpot_ms is not None
        ]
        # Requests of one token have no TPOT: they are no part of this distribution.
        total = sum(1 for r in arm.records if r.output_tokens > 1)
        _steps(axes, values, total, i, arm.header.arm)
        longest = max([longest, *values])
    objective = 1.0 if tiers else arms[0].header.tpot_ms
    _slo_line(axes, objective)
    axes.set_xlim(0, min(max(1.05 * longest, 1.2 * objective), 4 * objective))
    axes.set_xlabel("TPOT / its SLO" if tiers else f"TPOT, ms  (SLO {objective:g} ms)")
    _cdf_axes(axes, "Time per output token, client's clock")


def _steps(axes: Any, values: Sequence[float], total: int, i: int, label: str) -> None:
    """Cumulative share of `total`; what is missing never happened, so the curve ends below 100."""
    ordered = np.sort(np.asarray(values, dtype=float))
    share = 100 * np.arange(1, len(ordered) + 1) / max(total, 1)
    axes.step(ordered, share, where="post", color=_colour(i), linewidth=2, label=label)


def _cdf_axes(axes: Any, title: str) -> None:
    axes.set_ylim(0, 101)
    axes.set_ylabel("% of requests")
    axes.set_title(title)
    _legend_below(axes, 0.14)


def _ttft_over_length(axes: Any, arms: Sequence["Arm"]) -> None:
    top = max(
        (r.ttft_ms for arm in arms for r in arm.records if r.ttft_ms is not None), default=1e3
    )
    for i, arm in enumerate(arms):
        points = [(r.input_tokens, r.ttft_ms / 1e3) for r in arm.records if r.ttft_ms is not None]
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(
                x, y, s=16, color=_colour(i), alpha=0.55, linewidths=0, label=arm.header.arm
            )
        lost = [r.input_tokens for r in arm.records if r.ttft_ms is None]
        if lost:
            label = f"{arm.header.arm}: no first token"
            axes.scatter(
                lost, [1.6 * top / 1e3] * len(lost), s=26, marker="x", color=_colour(i), label=label
            )
    slos = sorted({(r.input_tokens, r.slo_ttft_ms / 1e3) for r in arms[0].records})
    axes.scatter(*zip(*slos, strict=True), s=5, color=_SLO, marker="_", label="SLO")
    axes.set(xscale="log", yscale="log", xlabel="prompt tokens", ylabel="TTFT, s")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_title("Who waits: time to first token over prompt length")
    _legend_below(axes, 0.14)
