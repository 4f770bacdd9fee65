"""A stretch of one prefill server's work: who was computed when, and who was overtaken."""

from collections.abc import Sequence
from typing import Any

from kairos.replay.report.drawing import png
from kairos.replay.report.figures import Bar, busiest_window, overtakes, prefill_bars
from kairos.replay.report.results import Arm

_WINDOW_S = 12.0
_MOST_LANES = 60


def gantt(arms: Sequence[Arm]) -> bytes | None:
    """The same seconds of every arm that has a device trace: those in which the arm that overtakes
    most does so most. None without a trace."""
    traced = [arm for arm in arms if any(f.rids for f in arm.runs[0].forwards)]
    if not traced:
        return None
    marks = {}
    for arm in traced:
        start = arm.runs[0].header.start_monotonic_s
        marks[arm.name] = [at - start for at, _ in overtakes(arm.runs[0].forwards)]
    width = _WINDOW_S * traced[0].header.dilate
    begin, end = busiest_window(max(marks.values(), key=len), width)
    begin, end = max(0.0, begin - width / 6), max(0.0, begin - width / 6) + width

    def draw(axes: Any) -> None:
        for axis, arm in zip(axes[:, 0], traced, strict=True):
            tokens = {r.rid: r.input_tokens for r in arm.runs[0].records}
            bars = [
                bar
                for bar in prefill_bars(arm.runs[0], begin, end)
                if bar.lane < _MOST_LANES and bar.rid in tokens
            ]
            _lanes(axis, bars, tokens)
            axis.set_xlim(begin, end)
            axis.set_title(
                f"{arm.name}: {len(marks[arm.name])} times in the whole run a started prompt sat "
                "out a batch"
            )
        axes[-1, 0].set_xlabel(
            "seconds from the first arrival; a lane per request, dark: prompt of many tokens"
        )

    return png((len(traced), 1), (14, 3.4 * len(traced) + 0.6), "One prefill server", draw)


def _lanes(axis: Any, bars: Sequence[Bar], tokens: dict[str, int]) -> None:
    from matplotlib import colormaps

    spans: dict[int, tuple[float, float]] = {}
    for bar in bars:
        low, high = spans.get(bar.lane, (bar.start_s, bar.end_s))
        spans[bar.lane] = min(low, bar.start_s), max(high, bar.end_s)
    for lane, (low, high) in spans.items():
        axis.hlines(lane, low, high, color="#c8c8c8", linewidth=1, zorder=1)
    for bar in bars:
        # Log scale from 500 to 128,000 tokens: lengths differ by that much.
        shade = min(1.0, max(0.0, (len(bin(tokens[bar.rid])) - 11) / 8))
        axis.barh(
            bar.lane,
            bar.end_s - bar.start_s,
            left=bar.start_s,
            height=0.8,
            color=colormaps["viridis_r"](0.1 + 0.9 * shade),
            linewidth=0,
            zorder=2,
        )
    axis.invert_yaxis()
    axis.set_yticks([])
    axis.set_ylabel("requests by first work")
    axis.grid(axis="y", visible=False)
