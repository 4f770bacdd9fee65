"""Decode step times learned while serving."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kairos.errors import InputError
from kairos.latency import load_profile
from kairos.latency.decode import DecodeModel
from kairos.latency.steps import CONTEXT_KNOTS, StepLearner, StepTables
from kairos.latency.store import load_state, save_state
from kairos.latency.table import StepTable

PROFILE = load_profile("minimax-m2.5-tp4-h200")
M = PROFILE.decode
PRIOR = StepTable.from_model(M, 128, PROFILE.limits.kv_tokens, knots=CONTEXT_KNOTS)


def scaled(fixed: float, experts: float, context: float, request: float, straggler: float = 0.0):
    return DecodeModel(
        M.fixed_s * fixed,
        M.experts_s * experts,
        M.expert_fraction,
        M.per_context_token_s * context,
        M.per_request_s * request,
        straggler,
    )


def follow(learner: StepLearner, true: DecodeModel, steps: int, seed: int = 1) -> float:
    """Relative rms error of the predictions over the last quarter of a random walk."""
    random = np.random.default_rng(seed)
    batch, errors = 20.0, []
    for _ in range(steps):
        batch = float(np.clip(batch + 2.0 * random.normal(), 1.0, 110.0))
        contexts = np.minimum(random.lognormal(8.9, 1.05, int(batch)), 100_000)
        load = len(contexts), float(contexts.sum()), float(contexts.max())
        seconds = true.step_s(*load) * (1 + 0.03 * random.standard_normal())
        errors.append(learner.table.step_s(*load) * learner.learned.factor / seconds - 1)
        learner.observe(*load, seconds)
    return float(np.sqrt(np.mean(np.square(errors[-steps // 4 :]))))


@pytest.mark.parametrize(
    "true",
    [M, scaled(1.5, 1.5, 1.5, 1.5), scaled(2, 0.7, 2, 3), scaled(1, 1, 1, 1, straggler=0.5)],
    ids=["the prior", "slower", "another shape", "follows the longest row"],
)
def test_predictions_come_close_to_the_noise_of_the_measurements(true) -> None:
    assert follow(StepLearner(PRIOR), true, 3_000) < 0.045


def test_the_weight_of_the_longest_context_is_found() -> None:
    learner = StepLearner(PRIOR)
    follow(learner, scaled(1, 1, 1, 1, straggler=0.5), 4_000)
    assert learner.learned.straggler == pytest.approx(0.5, abs=0.1)


def test_a_stall_among_the_first_steps_does_not_make_everything_slow() -> None:
    """Three steps of one request that took ten times as long once set the whole table, and nobody
    was parked any more: all batches seemed to take alike."""
    learner = StepLearner(PRIOR)
    for _ in range(3):
        learner.observe(1, 500.0, 500.0, 0.06)
    random = np.random.default_rng(3)
    for _ in range(4_000):
        contexts = random.uniform(2_000, 6_000, int(random.integers(30, 60)))
        load = len(contexts), float(contexts.sum()), float(contexts.max())
        learner.observe(*load, M.step_s(*load))
    for batch in (30, 60):
        found = learner.table.step_s(batch, 4_000.0 * batch, 6_000.0) * learner.learned.factor
        assert found == pytest.approx(M.step_s(batch, 4_000.0 * batch), rel=0.05)
    small, large = (learner.table.step_s(n, 4_000.0 * n, 6_000.0) for n in (15, 60))
    assert large > 1.3 * small


def test_contexts_of_little_cost_leave_the_weight_of_the_longest_unchanged() -> None:
    learner = StepLearner(PRIOR)
    random = np.random.default_rng(4)
    for _ in range(4_000):
        contexts = random.lognormal(5.0, 1.0, int(random.integers(8, 90)))
        load = len(contexts), float(contexts.sum()), float(contexts.max())
        learner.observe(*load, M.step_s(*load) * (1 + 0.08 * random.standard_normal()))
    assert learner.learned.straggler == 0.0
    assert np.max(learner.state()["counts"]) > 50.0


steps = st.tuples(st.integers(1, 128), st.floats(0, 1e6), st.floats(1e-4, 1.0))


@settings(deadline=None, max_examples=50)
@given(st.lists(steps, min_size=16, max_size=80))
def test_a_learned_step_never_gets_faster_with_load(samples) -> None:
    learner = StepLearner(PRIOR)
    for batch, context, seconds in samples:
        learner.observe(batch, context, context / batch, seconds)
    assert (np.diff(learner.table.seconds[1:], axis=0) >= -1e-12).all()
    assert (np.diff(learner.table.seconds, axis=1) >= -1e-12).all()
    assert (learner.table.seconds[1:] > 0.0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0])
def test_invalid_samples_are_ignored(bad: float) -> None:
    learner = StepLearner(PRIOR)
    learner.observe(4, 1_000.0, 500.0, bad)
    learner.observe(500, 1_000.0, 500.0, 0.01)
    assert learner.samples == 0


def test_another_rank_makes_the_same_table() -> None:
    learner = StepLearner(PRIOR)
    follow(learner, scaled(2, 0.7, 2, 3), 400)
    table = StepTables(PRIOR).of(learner.learned)
    assert np.array_equal(table.seconds, learner.table.seconds)
    assert table.straggler == learner.table.straggler


def test_a_restart_continues_from_the_last_run(tmp_path) -> None:
    learner = StepLearner(PRIOR)
    true = scaled(2, 0.7, 2, 3)
    follow(learner, true, 2_000)
    save_state(tmp_path, "decode", "engine", learner.state())
    fresh = StepLearner(PRIOR)
    fresh.restore(load_state(tmp_path, "decode", "engine"))
    assert fresh.table.step_s(30, 300_000) == pytest.approx(true.step_s(30, 300_000), rel=0.05)
    assert load_state(tmp_path, "decode", "another engine") is None
    assert load_state(tmp_path, "nothing", "engine") is None


def test_a_restart_learns_from_the_steps_of_its_own_run() -> None:
    """It took the empty part of its window for steps, and stopped the server with an error."""
    learner = StepLearner(PRIOR)
    true = scaled(2, 0.7, 2, 3)
    follow(learner, true, 700)
    fresh = StepLearner(PRIOR)
    fresh.restore(learner.state())
    follow(fresh, true, 1_200)
    assert fresh.table.step_s(30, 300_000) == pytest.approx(true.step_s(30, 300_000), rel=0.05)


@pytest.mark.parametrize("text", ["", "{", "[1", '"'])
def test_a_damaged_state_file_is_named(tmp_path, text: str) -> None:
    (tmp_path / "decode.json").write_text(text)
    with pytest.raises(InputError, match=r"decode\.json"):
        load_state(tmp_path, "decode", "engine")


@pytest.mark.parametrize(
    "change", [{"ratios": [[1.0]]}, {"mean": math.nan}, {"straggler": 2.0}, {"samples": "x"}, None]
)
def test_a_state_of_another_engine_is_refused(change) -> None:
    learner = StepLearner(PRIOR)
    state = {} if change is None else {**learner.state(), **change}
    with pytest.raises(InputError, match="learned steps"):
        learner.restore(state)
    assert learner.learned.version == 0


def test_one_batch_size_is_enough() -> None:
    prior = StepTable.from_model(M, 1, 10_000, knots=CONTEXT_KNOTS)
    learner = StepLearner(prior)
    for _ in range(100):
        learner.observe(1, 500.0, 500.0, 2.0 * prior.step_s(1, 500.0))
    assert learner.table.step_s(1, 500.0) == pytest.approx(2.0 * prior.step_s(1, 500.0), rel=0.02)
