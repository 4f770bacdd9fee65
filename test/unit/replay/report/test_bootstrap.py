"""Intervals by block bootstrap."""

import numpy as np
import pytest

from kairos.replay.report.bootstrap import block_length, block_means, interval, percent_interval


def test_constant_values_have_an_interval_without_width() -> None:
    assert interval(block_means(np.full((50, 1), 7.0))[:, 0]) == (7.0, 7.0)


def test_interval_covers_the_mean_at_its_level() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(200):
        values = (rng.random((400, 1)) < 0.8).astype(float)
        low, high = interval(block_means(values, seed=seed, draws=400)[:, 0])
        hits += low <= 0.8 <= high
    assert 175 <= hits <= 200


def test_correlated_neighbours_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    apart = (rng.random((900, 1)) < 0.5).astype(float)
    together = np.repeat((rng.random((30, 1)) < 0.5).astype(float), 30, axis=0)
    widths = [np.diff(interval(block_means(v)[:, 0]))[0] for v in (apart, together)]
    assert widths[1] > 3 * widths[0]


def test_arrays_of_one_length_get_the_same_blocks() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.random((100, 1)), rng.random((100, 1))
    paired = block_means(a) - block_means(b)
    assert paired == pytest.approx(block_means(a - b))
    assert block_means(np.hstack((a, b)))[:, 1:] == pytest.approx(block_means(b))


def test_single_request_is_its_own_interval() -> None:
    assert block_length(1) == 1
    assert interval(block_means(np.array([[3.0]]))[:, 0]) == (3.0, 3.0)


@pytest.mark.parametrize(("same", "ends"), [(100.0, (83.16, 100.0)), (0.0, (0.0, 16.84))])
def test_equal_percents_keep_a_bound_for_unseen_events(
    same: float, ends: tuple[float, float]
) -> None:
    """400 requests are 20 independent blocks: Clopper and Pearson's bound for 20 of 20."""
    assert percent_interval(np.full(400, same)) == pytest.approx(ends, abs=0.01)
    assert percent_interval(np.full(1, same)) in ((2.5, 100.0), (0.0, 97.5))


def test_equal_differences_keep_a_bound_for_unseen_events() -> None:
    assert percent_interval(np.zeros(400), -100.0) == pytest.approx((-16.84, 16.84), abs=0.01)
    mixed = np.array([0.0, 100.0] * 200)
    assert percent_interval(mixed) == interval(block_means(mixed[:, None])[:, 0])
