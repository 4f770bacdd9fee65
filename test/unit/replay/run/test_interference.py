"""Limits of interference, beyond which a run does not count."""

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
def test_figures_beyond_their_limits_are_problems(
    found: InterferenceReport, emulated: bool, problem: str | None
) -> None:
    problems = judged(found, emulated=emulated).problems
    assert len(problems) == (problem is not None)
    if problem:
        assert problem in problems[0]
        assert "allowed are" in problems[0]


def test_dilation_allows_a_longer_send_lag() -> None:
    assert judged(InterferenceReport(send_lag_p99_ms=9.0), emulated=True, dilate=2.0).problems == ()


def test_monitor_measures_this_machine() -> None:
    monitor = InterferenceMonitor()
    sum(i * i for i in range(3_000_000))
    found = monitor.result([record(i) for i in range(9)], [], emulated=True)
    assert found.send_lag_p99_ms == pytest.approx(1.0)
    assert found.run_cores is None or found.run_cores > 0.0


def test_disturbed_runs_count_only_if_allowed() -> None:
    disturbed = InterferenceReport(problems=("too loud",))
    assert header().counts
    assert not header(interference=disturbed).counts
    assert header(interference=disturbed, allow_disturbed=True).counts
    assert not header(note="decode-0 died", allow_disturbed=True).counts
