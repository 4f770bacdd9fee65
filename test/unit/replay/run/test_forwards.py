"""The device trace: engine clock, lag, use, and overtaken prompts."""

from pathlib import Path

import msgspec
import pytest

from kairos.replay.client.record import RequestOutcome
from kairos.replay.report.figures import busiest_window, overtakes, prefill_bars, waiting_over_time
from kairos.replay.report.results import RunResult
from kairos.replay.run.forwards import (
    Forward,
    decode_lag_percent,
    device_use,
    engine_tpot_ms,
    read_forwards,
)
from support.replay import header, record


def step(start: float, batch: int, *, seconds: float = 0.02, bubble: float = 0.0, **who) -> Forward:
    return Forward(
        role="decode", pid=2, kind="decode", batch=batch, tokens=batch, launch_s=start,
        duration_s=seconds, end_s=start + seconds, bubble_s=bubble, **who,
    )  # fmt: skip


def prefill(start: float, **tokens: int) -> Forward:
    return Forward(
        role="prefill", pid=1, kind="prefill", batch=len(tokens), tokens=sum(tokens.values()),
        launch_s=start, duration_s=0.1, end_s=start + 0.1, bubble_s=0.0,
        rids=list(tokens), new=list(tokens.values()),
    )  # fmt: skip


def test_engine_clock_runs_from_the_first_step_to_that_of_the_last_token() -> None:
    steps = [
        step(1.00, 1, joined=["a"]),
        step(1.02, 2, joined=["b"]),
        step(1.04, 1, left=["a"]),  # a sits out
        step(1.06, 2, joined=["a"]),
        step(1.08, 2),  # once more than a needs
    ]
    # a: 4 tokens, 3 of them decoded in 1.00 to 1.08, less what it sat out does not matter.
    clock = engine_tpot_ms(steps, {"a": 4, "b": 5, "c": 3})
    assert clock["a"] == pytest.approx(80 / 3)
    assert clock["b"] == pytest.approx((1.10 - 1.02) * 1e3 / 4)
    assert "c" not in clock
    assert engine_tpot_ms(steps, {"a": 9}) == {}  # not decoded to its end


def test_lag_counts_short_pauses_of_a_busy_device() -> None:
    new = {"joined": ["b"]}
    steps = [step(1.0, 1), step(1.021, 1, bubble=0.001), step(5.0, 1, bubble=3.9, **new)]
    assert decode_lag_percent(steps) == pytest.approx(100 * 0.001 / 0.06)
    assert decode_lag_percent([]) is None
    slow = [step(1.0, 1, bubble=0.03, **new)]
    assert decode_lag_percent(slow) == 0.0
    assert decode_lag_percent(slow, dilate=2.0) == pytest.approx(150.0)


def test_device_use_is_computed_per_role() -> None:
    use = device_use([prefill(0.0, a=10), step(0.1, 4), step(0.2, 8, seconds=0.06)], 1.0)
    assert use is not None
    assert (use.prefill_busy_percent, use.decode_busy_percent) == (10.0, 8.0)
    assert use.decode_tokens_per_busy_s == pytest.approx(12 / 0.08)
    assert use.decode_batch_mean == pytest.approx(7.0)
    assert device_use([step(0.1, 4)], 1.0) is None


def test_started_prompt_that_sits_out_a_batch_is_overtaken() -> None:
    batches = [
        prefill(0.0, long=100),
        prefill(0.1, short=10),  # long waits
        prefill(0.2, long=100, other=5),
        prefill(0.3, other=5),  # long is done
    ]
    assert overtakes(batches) == [(pytest.approx(0.1), "long")]
    run = RunResult(header(start_monotonic_s=0.0), [record(0)])
    run.__dict__["forwards"] = batches
    bars = prefill_bars(run, 0.0, 1.0)
    assert [(bar.rid, bar.lane) for bar in bars] == [
        *(("long", 0), ("short", 1), ("long", 0), ("other", 2), ("other", 2)),
    ]
    assert bars[2].share == pytest.approx(100 / 105)


def test_busiest_window_has_the_most_events() -> None:
    assert busiest_window([1.0, 10.0, 10.5, 11.0, 30.0], 2.0) == (10.0, 12.0)
    assert busiest_window([], 2.0) == (0.0, 2.0)


def test_trace_is_read_in_order_of_start(tmp_path: Path) -> None:
    path = tmp_path / "forwards.jsonl"
    assert read_forwards(path) == ([], 0)
    late, early = step(2.0, 1), step(1.0, 1)
    path.write_bytes(b"".join(msgspec.json.encode(f) + b"\n" for f in (late, early)))
    assert read_forwards(path) == ([early, late], 0)


def test_damaged_line_of_a_trace_is_counted_and_skipped(
    tmp_path: Path,
) -> None:
    path = tmp_path / "forwards.jsonl"
    whole = msgspec.json.encode(step(1.0, 1)) + b"\n"
    path.write_bytes(whole + whole[:20] + b"\n{}\n" + whole)
    assert read_forwards(path) == ([step(1.0, 1)] * 2, 2)


def test_waiting_counts_requests_due_without_a_token() -> None:
    records = [
        record(0, [1.0, 1.1], arrival_s=0.0),
        record(1, [0.5], arrival_s=0.2),
        record(2, [], RequestOutcome.TIMEOUT, arrival_s=0.3),
    ]
    times, waiting = waiting_over_time(records)
    assert times.tolist() == pytest.approx([0.0, 0.2, 0.3, 0.7, 1.0])
    assert waiting.tolist() == [1, 2, 3, 2, 1]


def test_long_pause_counts_if_the_device_had_work() -> None:
    """A host that hangs for a second between two steps of a batch is not idle."""
    hung = [step(1.0, 1, joined=["a"]), step(2.02, 2, bubble=1.0, joined=["b"])]
    assert decode_lag_percent(hung) == pytest.approx(100 * 1.0 / 0.04)
