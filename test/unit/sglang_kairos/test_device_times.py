"""Step times from upstream's device timer."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sglang.srt.kairos.decode_steps import DecodeSteps
from sglang.srt.kairos.device_times import MAX_APART, DeviceTimes, Load, device_times
from sglang.srt.kairos.shared_clock import SharedClock

from kairos.latency import load_profile
from kairos.latency.steps import CONTEXT_KNOTS
from kairos.latency.table import StepTable

PRIOR = StepTable.from_model(load_profile("tiny-fast").decode, 64, 50_000, knots=CONTEXT_KNOTS)


class Timer:
    """As upstream's, for what is reported."""

    def __init__(self) -> None:
        self._reporters: list[Any] = []

    def add_reporter(self, reporter: Any) -> None:
        self._reporters.append(reporter)

    def report(self, seconds: float, category: str = "decode") -> None:
        for reporter in self._reporters:
            reporter(t=seconds, category=category)


def load(batch: int) -> Load:
    return Load(batch, 100.0 * batch, 100.0)


def test_steps_get_their_seconds_however_late_these_come() -> None:
    timer = Timer()
    times = DeviceTimes(timer)
    assert times.processed(load(1), after_idle=True) == []
    assert times.processed(load(2), after_idle=False) == []
    timer.report(0.1)
    timer.report(0.5, "extend")
    assert times.processed(load(3), after_idle=False) == [(load(1), 0.1)]
    timer.report(0.2)
    timer.report(0.3)
    assert times.processed(None, after_idle=False) == [(load(2), 0.2), (load(3), 0.3)]
    timer.report(0.4)
    timer.report(0.5)
    assert times.processed(load(5), after_idle=False) == [(load(5), 0.5)]


def test_after_an_idle_gap_they_start_anew() -> None:
    timer = Timer()
    times = DeviceTimes(timer)
    times.processed(load(1), after_idle=True)
    timer.report(0.1)
    timer.report(9.9)  # of a step whose result nobody processed
    assert times.processed(load(2), after_idle=True) == []
    timer.report(0.2)
    assert times.processed(load(3), after_idle=False) == [(load(2), 0.2)]


def test_without_reports_nothing_piles_up() -> None:
    times = DeviceTimes(Timer())
    for _ in range(1_000):
        times.processed(load(1), after_idle=False)
        assert len(times._loads) <= MAX_APART + 2


def test_without_a_timer_there_are_none() -> None:
    reporter = SimpleNamespace(forward_pass_device_timer=None)
    assert device_times(SimpleNamespace(metrics_reporter=reporter)) is None


def test_the_table_follows_the_device_and_the_calibration_the_pace() -> None:
    timer = Timer()
    clock = SharedClock(1, lambda: 0.0)
    steps = DecodeSteps(PRIOR, clock, overlap=True, device=DeviceTimes(timer))
    lengths = SimpleNamespace(numpy=lambda: np.full(8, 500))
    expected = PRIOR.step_s(8, 4_000.0, 500.0)
    done = 0.0
    for at in range(2_000):
        done += 3.0 * expected
        batch = SimpleNamespace(forward_iter=at, after_idle_gap=at == 0, seq_lens_cpu=lengths)
        steps.observe(batch, done)
        timer.report(2.0 * expected)
    table, factor = steps.current()
    assert table.step_s(8, 4_000.0, 500.0) == pytest.approx(2.0 * expected, rel=0.05)
    assert factor == pytest.approx(1.5, rel=0.05)
    assert steps.snapshot()["device_timer"]
