"""Data behind the plots: plain arrays, no drawing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kairos.replay.client.record import RequestRecord
from kairos.replay.report.bootstrap import Floats
from kairos.replay.report.results import RunResult
from kairos.replay.run.forwards import Forward


@dataclass(frozen=True, slots=True)
class Bar:
    """A stretch of prefill work in a Gantt chart.

    Attributes:
        rid: request that was computed.
        lane: row, from 0; requests in order of their first work.
        start_s: begin, seconds from the start of the replay.
        end_s: end, seconds from the start of the replay.
        share: share of the batch's new tokens that belong to this request.
    """

    rid: str
    lane: int
    start_s: float
    end_s: float
    share: float


def waiting_over_time(records: Sequence[RequestRecord]) -> tuple[Floats, Floats]:
    """Return the number of requests that are due and have no first token.

    A request without any token waits to the end.

    Returns:
        Times of the steps in seconds, and the number from each of them on.
    """
    due = [(r.arrival_s, 1) for r in records]
    served = [(r.arrival_s + r.ttft_ms / 1e3, -1) for r in records if r.ttft_ms is not None]
    return _steps(due + served)


def decoding_over_time(run: RunResult) -> tuple[Floats, Floats]:
    """Return the number of requests in decode steps; without a device trace, those that stream.

    Returns:
        Times of the steps in seconds, and the number from each of them on.
    """
    steps = [f for f in run.forwards if f.kind == "decode"]
    if not steps:
        changes = []
        for r in run.records:
            if r.ttft_ms is not None and r.tpot_ms is not None:
                first = r.arrival_s + r.ttft_ms / 1e3
                changes += [(first, 1), (first + r.tpot_ms * (r.got_tokens - 1) / 1e3, -1)]
        return _steps(changes)
    start = run.header.start_monotonic_s
    changes = [(f.start_s - start, f.batch) for f in steps]
    changes += [(f.end_s - start, -f.batch) for f in steps]
    return _steps(changes)


def prefill_bars(run: RunResult, begin_s: float, end_s: float) -> list[Bar]:
    """Return the work of the first prefill server between two times."""
    batches = _first_server(run.forwards)
    start = run.header.start_monotonic_s
    lanes: dict[str, int] = {}
    bars = []
    for f in batches:
        first, last = f.start_s - start, f.end_s - start
        if last < begin_s or first > end_s:
            continue
        for rid, new in zip(f.rids, f.new, strict=True):
            lane = lanes.setdefault(rid, len(lanes))
            bars.append(Bar(rid, lane, first, last, new / max(1, f.tokens)))
    return bars


def overtakes(forwards: Sequence[Forward]) -> list[tuple[float, str]]:
    """Return the batches of the first prefill server that a started, unfinished prompt sat out.

    Returns:
        Monotonic time of the batch and rid of the prompt.
    """
    batches = _first_server(forwards)
    last = {rid: i for i, f in enumerate(batches) for rid in f.rids}
    started: dict[str, None] = {}
    found = []
    for i, f in enumerate(batches):
        members = set(f.rids)
        found += [(f.start_s, rid) for rid in started if rid not in members]
        for rid in f.rids:
            if last[rid] > i:
                started[rid] = None
            else:
                started.pop(rid, None)
    return found


def busiest_window(times_s: Sequence[float], width_s: float) -> tuple[float, float]:
    """Return the window with the most events.

    Args:
        times_s: times of the events, ascending.
        width_s: width of the window, seconds.

    Returns:
        Begin and end of the window; (0, width_s) without events.
    """
    most, begin = 0, 0.0
    low = 0
    for high, time in enumerate(times_s):
        while times_s[low] < time - width_s:
            low += 1
        if high - low + 1 > most:
            most, begin = high - low + 1, times_s[low]
    return begin, begin + width_s


def _first_server(forwards: Sequence[Forward]) -> list[Forward]:
    batches = [f for f in forwards if f.kind == "prefill" and f.rids]
    return [f for f in batches if f.pid == batches[0].pid]


def _steps(changes: list[tuple[float, int]]) -> tuple[Floats, Floats]:
    if not changes:
        return np.zeros(0), np.zeros(0)
    changes.sort()
    times = np.array([time for time, _ in changes])
    return times, np.cumsum([change for _, change in changes]).astype(np.float64)
