"""What makes a run not count."""

import pytest

from kairos.replay.run.interference import InterferenceMonitor, InterferenceReport, judged
from support.replay import header, record


@pytest.mark.parametrize(
    ("found", "emulated", "problem"),
    [
        (InterferenceReport(send_lag_p99_ms=5.1), False, "send lag"),
        (InterferenceReport(send_lag_p99_ms=4.9), False, None),
        (InterferenceReport(others_cores=1.4), True, "other processes"),
        (InterferenceReport(others_cores=1.4), False, None),  # not the servers' machine
        (InterferenceReport(cpu_pressure_percent=90.0), True, "CPU pressure"),
        (InterferenceReport(device_lag_percent=9.0), True, "emulated devices"),
        (InterferenceReport(), True, None),
        (
            InterferenceReport(send_lag_p99_ms=1.0, others_cores=0.1, device_lag_percent=1.0),
            True,
            None,
        ),
    ],
)
def test_1_limits(found: InterferenceReport, emulated: bool, problem: str | None) -> None:
    problems = judged(found, emulated=emulated).problems
    assert len(problems) == (problem is not None)
    if problem:
        assert problem in problems[0]
        assert "allowed are" in problems[0]


def test_2_slowed_down_the_lag_may_be_longer() -> None:
    assert judged(InterferenceReport(send_lag_p99_ms=9.0), emulated=True, dilate=2.0).problems == ()


def test_3_a_watch_measures_this_machine() -> None:
    watch = InterferenceMonitor()
    sum(i * i for i in range(3_000_000))
    quiet = watch.result([record(i) for i in range(9)], [], emulated=True)
    assert quiet.send_lag_p99_ms == pytest.approx(1.0)
    assert quiet.run_cores is None or quiet.run_cores > 0.0


def test_4_disturbed_runs_count_only_when_that_was_asked_for() -> None:
    noisy = InterferenceReport(problems=("too loud",))
    assert header().counts
    assert not header(interference=noisy).counts
    assert header(interference=noisy, allow_disturbed=True).counts
    assert not header(note="decode-0 died", allow_disturbed=True).counts
