"""The prefill model follows a server that is not what its profile says."""

import numpy as np
import pytest

from kairos.errors import InputError
from kairos.latency import Chunk, PrefillModel, load_profile
from kairos.latency.fit import PrefillSample, refine_prefill
from kairos.latency.prefill_learner import REFIT_EVERY, PrefillLearner

PRIOR = load_profile("minimax-m2.5-tp4-h200").prefill


def server(fixed: float, floor: float, linear: float, attention: float) -> PrefillModel:
    """Another machine: multiples of the prior's coefficients."""
    return PrefillModel(
        PRIOR.fixed_s * fixed,
        PRIOR.weight_floor_s * floor,
        PRIOR.per_token_s * linear,
        PRIOR.per_token_context_s * attention,
    )


def batches(count: int, most_context: int, seed: int = 0) -> list[list[Chunk]]:
    random = np.random.default_rng(seed)
    return [
        [
            Chunk(int(random.integers(0, most_context)), int(random.integers(50, 3000)))
            for _ in range(random.integers(1, 4))
        ]
        for _ in range(count)
    ]


def taught(true: PrefillModel, most_context: int, noise: float = 0.05) -> PrefillLearner:
    random = np.random.default_rng(1)
    learner = PrefillLearner(PRIOR)
    for chunks in batches(6 * REFIT_EVERY, most_context):
        seconds = true.batch_s(chunks) * (1 + noise * random.standard_normal())
        # Now and then something else takes the machine.
        learner.observe(chunks, seconds + (0.5 if random.random() < 0.02 else 0.0))
    return learner


def error(learner: PrefillLearner, true: PrefillModel, work: list[list[Chunk]]) -> float:
    return max(
        abs(learner.factor * learner.model.batch_s(chunks) / true.batch_s(chunks) - 1)
        for chunks in work
    )


@pytest.mark.parametrize(
    "true", [(1, 1, 1, 1), (4, 4, 4, 4), (2, 1.5, 3, 0.7), (0.3, 0.5, 0.2, 0.5)]
)
@pytest.mark.parametrize("most_context", [60_000, 200])
def test_predictions_converge_to_the_measurements(
    true: tuple[float, ...], most_context: int
) -> None:
    machine = server(*true)
    learner = taught(machine, most_context)
    assert learner.refits == 6
    assert error(learner, machine, batches(100, most_context, seed=2)) < 0.15


def test_sizes_that_were_not_measured_follow_the_overall_level() -> None:
    machine = server(2, 2, 2, 2)
    learner = taught(machine, most_context=200)
    assert error(learner, machine, [[Chunk(100_000, 2000)]]) < 0.25


def test_a_drift_is_followed_before_the_next_refit() -> None:
    learner = PrefillLearner(PRIOR)
    for chunks in batches(REFIT_EVERY - 1, 10_000):
        learner.observe(chunks, 1.3 * PRIOR.batch_s(chunks))
    assert learner.refits == 0
    assert learner.factor == pytest.approx(1.3, rel=0.05)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_durations_are_ignored(seconds: float) -> None:
    learner = PrefillLearner(PRIOR)
    assert not learner.observe([Chunk(0, 100)], seconds)
    assert learner.factor == 1.0


def test_a_refit_without_samples_is_refused() -> None:
    with pytest.raises(InputError):
        refine_prefill(PRIOR, [])
    with pytest.raises(InputError):
        refine_prefill(PRIOR, [PrefillSample([Chunk(0, 10)], -1.0)])
