"""The search of the largest load."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kairos.errors import InputError
from kairos.replay.report.goodput import HIGHEST, LOWEST, TOLERANCE, largest_load


def constant(percent: float) -> Callable[[float], float]:
    return lambda _: percent


@given(st.floats(LOWEST * 1.05, HIGHEST * 0.95), st.lists(st.floats(0.06, 3.9), max_size=3))
def test_search_finds_the_edge_within_tolerance(edge: float, known: list[float]) -> None:
    asked: list[float] = []

    def attainment(load: float) -> float:
        asked.append(load)
        return 95.0 if load <= edge else 80.0

    before = {load: 95.0 if load <= edge else 80.0 for load in known}
    found = largest_load(attainment, 90.0, before)
    assert found.misses_at is not None
    assert found.load <= edge < found.misses_at
    assert found.misses_at - found.load <= max(TOLERANCE * found.load, 0.002) * 1.01
    assert len(asked) == len(set(asked)) < 20
    assert not set(asked) & set(before)


def test_search_ends_at_its_bounds() -> None:
    assert largest_load(constant(100.0), 99.0).load == HIGHEST
    assert largest_load(constant(100.0), 99.0).misses_at is None
    never = largest_load(constant(10.0), 90.0)
    assert (never.load, never.misses_at) == (0.0, LOWEST)


def test_known_results_are_used() -> None:
    found = largest_load(lambda load: 95.0 if load < 0.97 else 80.0, 90.0, {0.9: 92.0, 1.0: 70.0})
    assert "0.9" in found.probes
    assert 0.93 < found.load < 0.97


@pytest.mark.parametrize("target", [0.0, 101.0, float("nan")])
def test_bad_targets_are_refused(target: float) -> None:
    with pytest.raises(InputError, match="goodput target"):
        largest_load(constant(1.0), target)
