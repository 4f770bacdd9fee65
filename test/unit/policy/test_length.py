import math

import numpy as np
import pytest

from kairos.errors import InputError
from kairos.policy.length import BINS, LengthEstimator, bin_of, group_of


def learned(lengths: list[int], quantile: float = 0.05) -> LengthEstimator:
    estimator = LengthEstimator(quantile=quantile)
    for length in lengths:
        estimator.observe(0, length)
    return estimator


def test_nothing_is_predicted_before_a_hundred_completions():
    estimator = learned([300] * 75)
    assert not estimator.horizons.any()
    assert estimator.expected_remaining(0, 0, 1_000) is None


def test_a_fixed_length_is_found_within_a_bin():
    estimator = learned([400] * 300)
    assert estimator.expected_remaining(0, 0, 10_000) == pytest.approx(400, rel=0.1)
    assert estimator.horizons[0, 0] == pytest.approx(400, rel=0.2)
    assert estimator.horizons[0, bin_of(200)] < 250


def test_the_horizon_is_the_quantile_of_what_remains():
    rng = np.random.default_rng(1)
    lengths = rng.exponential(500.0, 4_000).astype(int) + 1
    estimator = learned(lengths.tolist(), quantile=0.5)
    # Memoryless: the median of what remains is the same at every age.
    for age in (0, 100, 400):
        assert estimator.horizons[0, bin_of(age)] == pytest.approx(500 * math.log(2), rel=0.25)


def test_a_small_group_uses_all_groups_and_a_large_one_its_own():
    estimator = LengthEstimator(classes=2)
    short, long, rare = group_of(0, 100), group_of(0, 50_000), group_of(1, 100)
    for _ in range(400):
        estimator.observe(short, 20)
        estimator.observe(long, 2_000)
    assert estimator.horizons[long, 0] > 50 * estimator.horizons[short, 0]
    pooled = estimator.expected_remaining(rare, 0, 10_000)
    assert pooled is not None
    assert 500 < pooled < 1_500


def test_the_limit_of_the_request_caps_the_expectation():
    estimator = learned([5_000] * 200)
    assert estimator.expected_remaining(0, 0, 64) == pytest.approx(64)
    assert estimator.expected_remaining(0, 64, 64) == 0.0


def test_old_lengths_are_forgotten():
    estimator = LengthEstimator(memory=200)
    for length in [4_000] * 500 + [50] * 2_000:
        estimator.observe(0, length)
    expected = estimator.expected_remaining(0, 0, 10_000)
    assert expected is not None
    assert expected < 60


def test_lengths_beyond_the_last_bin_count_there():
    assert bin_of(10**9) == BINS - 1
    assert np.isfinite(learned([10**9] * 200).horizons).all()


@pytest.mark.parametrize("bad", [{"classes": 0}, {"quantile": 0.0}, {"memory": math.nan}])
def test_bad_parameters_are_rejected(bad):
    with pytest.raises(InputError):
        LengthEstimator(**bad)


@pytest.mark.parametrize(("group", "tokens"), [(-1, 10), (4, 10), (0, -1)])
def test_completions_out_of_range_are_rejected(group, tokens):
    estimator = LengthEstimator()
    with pytest.raises(InputError, match="length estimator"):
        estimator.observe(group, tokens)
    assert estimator.state()["seen"] == 0
