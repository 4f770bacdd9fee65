"""The plots of a report."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kairos.replay.report.drawing import (
    SLO_COLOUR,
    colour,
    cumulative,
    dashes,
    legend_below,
    png,
    slo_line,
)
from kairos.replay.report.figures import decoding_over_time, waiting_over_time
from kairos.replay.report.gantt import gantt
from kairos.replay.report.metrics import length_deciles, tpot_ms, ttft_ms
from kairos.replay.report.model import Extras, headline, subtitle
from kairos.replay.report.results import ArmResult

_PANEL_COLUMNS = 4
"""Columns of a legend below a half-width panel; a wider legend would squeeze the panel."""


def plots(groups: Mapping[float, Sequence[ArmResult]], extras: Extras) -> dict[str, bytes]:
    """Return PNGs by file name without the ending, in the order of the page."""
    arms = groups[headline(groups)]
    images = {
        "report": overview(arms),
        "deciles": deciles(arms),
        "timeline": timeline(arms),
    }
    if len(groups) > 1:
        images["loads"] = over_load(groups, extras)
    overtaking = gantt(arms)
    if overtaking is not None:
        images["gantt"] = overtaking
    return images


def overview(arms: Sequence[ArmResult]) -> bytes:
    """Draw attainment, TTFT against its SLO, TTFT over prompt length and TPOT."""

    def draw(axes: Any) -> None:
        _attainment(axes[0, 0], arms)
        _ttft_cdf(axes[0, 1], arms)
        _ttft_over_length(axes[1, 0], arms)
        _tpot_cdf(axes[1, 1], arms)

    return png((2, 2), (14, 9.6), subtitle(arms), draw)


def deciles(arms: Sequence[ArmResult]) -> bytes:
    """Draw CDFs of TTFT and TPOT by tenths of prompt length, one arm per row."""

    def draw(axes: Any) -> None:
        for row, arm in zip(axes, arms, strict=True):
            for i, part in enumerate(length_deciles(arm.records)):
                shade = _shade(i)
                label = f"{part[0].input_tokens:,}–{part[-1].input_tokens:,}"
                ttft = [ttft_ms(r) / r.slo_ttft_ms for r in part]
                tpot = [tpot_ms(r) / r.slo_tpot_ms for r in part if r.output_tokens > 1]
                cumulative(row[0], ttft, len(part), color=shade, label=label)
                several = sum(1 for r in part if r.output_tokens > 1)
                cumulative(row[1], tpot, several, color=shade, label=label)
            for axis, figure in zip(row, ("TTFT", "TPOT"), strict=True):
                slo_line(axis, 1.0)
                axis.set_title(f"{arm.name}: {figure} / its SLO by prompt length")
                axis.set_ylim(0, 101)
                axis.set_ylabel("% of the tenth")
            row[0].set_xscale("log")
            row[0].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            row[1].set_xlim(0, 3)
        # The legend belongs to the figure: within a panel it would squeeze the panel.
        axes[-1][0].figure.legend(
            *axes[-1][0].get_legend_handles_labels(),
            title="prompt tokens", loc="outside lower left", ncols=5,
        )  # fmt: skip

    return png((len(arms), 2), (14, 3.6 * len(arms) + 0.8), subtitle(arms), draw)


def timeline(arms: Sequence[ArmResult]) -> bytes:
    """Draw queue and decode batch over time, of the first run of each arm."""

    def draw(axes: Any) -> None:
        queue, batch = axes[0, 0], axes[1, 0]
        for i, arm in enumerate(arms):
            style: dict[str, Any] = {
                "color": colour(i), "linestyle": dashes(i), "linewidth": 1.4, "label": arm.name,
            }  # fmt: skip
            queue.step(*waiting_over_time(arm.runs[0].records), where="post", **style)
            batch.step(*decoding_over_time(arm.runs[0]), where="post", **style)
        queue.set_title("Requests waiting for their first token")
        batch.set_title("Requests in a decode step")
        for axis in (queue, batch):
            axis.set_ylim(bottom=0)
            axis.set_ylabel("requests")
        batch.set_xlabel("seconds from the first arrival")
        legend_below(batch, 0.16)

    return png((2, 1), (14, 7.2), subtitle(arms), draw, share_x=True)


def over_load(groups: Mapping[float, Sequence[ArmResult]], extras: Extras) -> bytes:
    """Draw attainment against load with 95 % intervals, and the simulator's as dotted lines."""
    names = list(dict.fromkeys(arm.name for group in groups.values() for arm in group))
    fields = ("e2e_attainment", "ttft_attainment", "tpot_attainment")

    def draw(axes: Any) -> None:
        for axis, field in zip(axes[0], fields, strict=True):
            for i, name in enumerate(names):
                points = [
                    (load, getattr(arm.summary, field), arm.summary.intervals[field])
                    for load, group in sorted(groups.items())
                    for arm in group
                    if arm.name == name
                ]
                loads = [load for load, _, _ in points]
                values = [value for _, value, _ in points]
                axis.plot(
                    loads, values, marker="o", markersize=4, color=colour(i),
                    linestyle=dashes(i), label=name,
                )  # fmt: skip
                axis.fill_between(
                    loads, [low for *_, (low, _) in points], [high for *_, (_, high) in points],
                    color=colour(i), alpha=0.15, linewidth=0,
                )  # fmt: skip
                simulated = [
                    (load, float(figures[field]))
                    for load, found in sorted(extras.simulated.items())
                    if (figures := found.get(name)) is not None
                ]
                if simulated:
                    x, y = zip(*simulated, strict=True)
                    axis.plot(x, y, color=colour(i), linewidth=0.9, linestyle=":")
            axis.set_ylim(0, 101)
            axis.set_xlabel("load (dotted: simulator)")
            axis.set_title(
                f"{field.split('_')[0].replace('ttft', 'TTFT').replace('tpot', 'TPOT')} attainment"
            )
        axes[0][0].set_ylabel("% of requests")
        legend_below(axes[0][0], 0.14, 8)

    first = next(iter(groups.values()))
    return png((1, 3), (14, 5.2), subtitle(first), draw)


def _shade(i: int) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis_r"](0.08 + 0.92 * i / 9)


def _attainment(axes: Any, arms: Sequence[ArmResult]) -> None:
    groups = (
        ("TTFT", "ttft_attainment"),
        ("TPOT", "tpot_attainment"),
        ("e2e (both)", "e2e_attainment"),
    )
    width = 0.8 / len(arms)
    for i, arm in enumerate(arms):
        s = arm.summary
        heights = np.array([getattr(s, field) for _, field in groups])
        ends = np.array([s.intervals[field] for _, field in groups]).T
        errors = np.maximum(0.0, np.abs(ends - heights))
        places = np.arange(len(groups)) + (i - (len(arms) - 1) / 2) * width
        bars = axes.bar(
            places, heights, 0.92 * width, color=colour(i), label=arm.name,
            yerr=errors, error_kw={"elinewidth": 0.9, "capsize": 2, "ecolor": "#333333"},
        )  # fmt: skip
        labels = [f"{height:.1f}" if len(arms) < 5 else f"{height:.0f}" for height in heights]
        axes.bar_label(bars, labels, padding=2, fontsize=10 if len(arms) < 4 else 7.5)
    axes.set_xticks(range(len(groups)), [name for name, _ in groups])
    axes.set_ylim(0, 110)
    axes.set_yticks(range(0, 101, 20))
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("% of all requests")
    axes.set_title("SLO attainment, with 95 % intervals")
    legend_below(axes, 0.09, _PANEL_COLUMNS)


def _ttft_cdf(axes: Any, arms: Sequence[ArmResult]) -> None:
    for i, arm in enumerate(arms):
        ratios = [ttft_ms(r) / r.slo_ttft_ms for r in arm.records]
        cumulative(
            axes, ratios, len(arm.records), color=colour(i), linestyle=dashes(i), label=arm.name
        )
    slo_line(axes, 1.0)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("TTFT / its SLO  (left of 1: met)")
    _cdf_axes(axes, "Time to first token against the request's SLO")


def _tpot_cdf(axes: Any, arms: Sequence[ArmResult]) -> None:
    tiers = len({r.slo_tpot_ms for arm in arms for r in arm.records}) > 1
    longest = 0.0
    for i, arm in enumerate(arms):
        # Requests of one token have no TPOT and are left out of this distribution.
        several = [r for r in arm.records if r.output_tokens > 1]
        values = [tpot_ms(r) / (r.slo_tpot_ms if tiers else 1.0) for r in several]
        cumulative(axes, values, len(several), color=colour(i), linestyle=dashes(i), label=arm.name)
        longest = max([longest, *filter(math.isfinite, values)])
    objective = 1.0 if tiers else arms[0].records[0].slo_tpot_ms
    slo_line(axes, objective)
    axes.set_xlim(0, min(max(1.05 * longest, 1.2 * objective), 4 * objective))
    axes.set_xlabel("TPOT / its SLO" if tiers else f"TPOT, ms  (SLO {objective:g} ms)")
    _cdf_axes(axes, "Time per output token, client's clock")


def _cdf_axes(axes: Any, title: str) -> None:
    axes.set_ylim(0, 101)
    axes.set_ylabel("% of requests")
    axes.set_title(title)
    legend_below(axes, 0.14, _PANEL_COLUMNS)


def _ttft_over_length(axes: Any, arms: Sequence[ArmResult]) -> None:
    top = max(
        (r.ttft_ms for arm in arms for r in arm.records if r.ttft_ms is not None), default=1e3
    )
    for i, arm in enumerate(arms):
        points = [(r.input_tokens, r.ttft_ms / 1e3) for r in arm.records if r.ttft_ms is not None]
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, s=14, color=colour(i), alpha=0.5, linewidths=0, label=arm.name)
        failed = [r.input_tokens for r in arm.records if r.ttft_ms is None]
        if failed:
            label = f"{arm.name}: no first token"
            axes.scatter(
                failed,
                [1.6 * top / 1e3] * len(failed),
                s=26,
                marker="x",
                color=colour(i),
                label=label,
            )
    slos = sorted({(r.input_tokens, r.slo_ttft_ms / 1e3) for r in arms[0].records})
    axes.scatter(*zip(*slos, strict=True), s=5, color=SLO_COLOUR, marker="_", label="SLO")
    axes.set(xscale="log", yscale="log", xlabel="prompt tokens", ylabel="TTFT, s")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_title("Time to first token over prompt length")
    legend_below(axes, 0.14, _PANEL_COLUMNS)
