"""The clock of a request that reached a scheduler."""

import math

import pytest
from sglang.srt.kairos.request_slo import KEY, MAX_WAIT_S, of_request

from kairos.slo import Slo, SloClasses

CLASSES = SloClasses(Slo(2_000.0, 50.0))
NOW = 10_000.0


def arrival(told: object) -> float:
    return of_request({KEY: {"arrival_s": told}}, CLASSES, NOW).arrival_s


def test_the_clock_runs_since_the_first_process() -> None:
    assert arrival(NOW - 5.0) == NOW - 5.0
    assert of_request(None, CLASSES, NOW).arrival_s == NOW


@pytest.mark.parametrize(
    "told", [NOW + 1.0, NOW - MAX_WAIT_S - 1.0, -1e300, -math.inf, math.nan, "5", None]
)
def test_an_arrival_by_another_clock_is_ignored(told: object) -> None:
    """Minus infinity would make the deadline no number."""
    assert arrival(told) == NOW
