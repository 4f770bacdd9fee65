"""Gantt chart of one prefill server: the batches of each prompt, and the overtaken prompts."""

from collections.abc import Sequence
from typing import Any

from kairos.replay.report.drawing import png
from kairos.replay.report.figures import Bar, busiest_window, overtakes, prefill_bars
from kairos.replay.report.results import ArmResult

_WINDOW_S = 12.0
_MAX_LANES = 60


def gantt(arms: Sequence[ArmResult]) -> bytes | None:
    """Draw the same seconds of every arm that has a device trace.

    The window is the one with the most overtaking in the arm that overtakes most.

    Returns:
        The chart as PNG; None without a trace.
    """
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
                if bar.lane < _MAX_LANES and bar.rid in tokens
            ]
            _lanes(axis, bars, tokens)
            axis.set_xlim(begin, end)
            axis.set_title(
                f"{arm.name}: in the whole run, started prompts sat out "
                f"{len(marks[arm.name])} batches"
            )
        axes[-1, 0].set_xlabel(
            "seconds from the first arrival; one lane per request, darker for longer prompts"
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
        # Shades are on a log scale from 500 to 128,000 tokens, the range of the lengths.
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
