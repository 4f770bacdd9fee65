"""Step durations from upstream's device timer."""

import numpy as np
import pytest
from sglang.srt.kairos.decode.device_times import (
    MAX_APART,
    DeviceStepTimes,
    StepLoad,
    device_step_times,
)
from sglang.srt.kairos.decode.steps import DecodeSteps
from sglang.srt.kairos.shared_clock import SharedClock
from sglang.srt.kairos.upstream import DeviceTimeReporter

from kairos.latency import load_profile
from kairos.latency.steps import CONTEXT_KNOTS
from kairos.latency.table import StepTable
from support.decode_loop import Allocator, Batch, HostLengths
from support.fake_scheduler import fake_scheduler

PRIOR = StepTable.from_model(load_profile("tiny-fast").decode, 64, 50_000, knots=CONTEXT_KNOTS)


class Timer:
    """Upstream's `DeviceTimer`, as far as reports go."""

    def __init__(self) -> None:
        self._reporters: list[DeviceTimeReporter] = []

    def add_reporter(self, reporter: DeviceTimeReporter) -> None:
        self._reporters.append(reporter)

    def report(self, seconds: float, category: str = "decode") -> None:
        for reporter in self._reporters:
            reporter(t=seconds, category=category)


def load(batch: int) -> StepLoad:
    return StepLoad(batch, 100.0 * batch, 100.0)


def test_late_reports_are_paired_with_their_steps() -> None:
    timer = Timer()
    times = DeviceStepTimes(timer)
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


def test_pairing_starts_anew_after_an_idle_gap() -> None:
    timer = Timer()
    times = DeviceStepTimes(timer)
    times.processed(load(1), after_idle=True)
    timer.report(0.1)
    timer.report(9.9)  # of a step whose result was never processed
    assert times.processed(load(2), after_idle=True) == []
    timer.report(0.2)
    assert times.processed(load(3), after_idle=False) == [(load(2), 0.2)]


def test_steps_without_reports_do_not_pile_up() -> None:
    times = DeviceStepTimes(Timer())
    for _ in range(1_000):
        times.processed(load(1), after_idle=False)
        assert len(times) <= MAX_APART + 2


def test_no_device_times_without_a_timer() -> None:
    assert device_step_times(fake_scheduler("decode")) is None


def test_table_follows_the_device_and_calibration_the_pace() -> None:
    timer = Timer()
    clock = SharedClock(1, lambda: 0.0)
    steps = DecodeSteps(PRIOR, clock, overlap=True, device=DeviceStepTimes(timer))
    batch = Batch([], Allocator())
    batch.seq_lens_cpu = HostLengths(np.full(8, 500))
    expected = PRIOR.step_s(8, 4_000.0, 500.0)
    done = 0.0
    for at in range(2_000):
        done += 3.0 * expected
        batch.forward_iter, batch.after_idle_gap = at, at == 0
        steps.observe(batch, done)
        timer.report(2.0 * expected)
    table, factor = steps.current()
    assert table.step_s(8, 4_000.0, 500.0) == pytest.approx(2.0 * expected, rel=0.05)
    assert factor == pytest.approx(1.5, rel=0.05)
    assert steps.snapshot()["device_timer"]
