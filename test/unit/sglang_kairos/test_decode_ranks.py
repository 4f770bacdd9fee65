"""Data-parallel attention ranks: a step lasts as long as that of the slowest."""

import numpy as np
import pytest
from sglang.srt.kairos.decode.ranks import DecodeRanks
from sglang.srt.kairos.decode.steps import DecodeSteps
from sglang.srt.kairos.rank_batches import RankBatches
from sglang.srt.kairos.shared_clock import SharedClock

from kairos.latency import load_profile
from kairos.latency.ranks import LockStep, RankLoad
from kairos.latency.steps import CONTEXT_KNOTS
from kairos.latency.table import StepTable

PROFILE = load_profile("minimax-m2.5-dp8-h200")
PRIOR = StepTable.from_model(PROFILE.decode, 64, 200_000, (), CONTEXT_KNOTS)


def ranks(rank: int = 0, count: int = 2) -> tuple[DecodeRanks, RankBatches]:
    batches = RankBatches(rank)
    return DecodeRanks(PRIOR, PROFILE.decode, count, batches), batches


def test_before_the_first_gather_the_others_are_idle() -> None:
    table = ranks()[0].beside(PRIOR)
    assert table.step_s(3, 5_000) == pytest.approx(PRIOR.step_s(3, 5_000))


def test_no_step_is_shorter_than_that_of_the_slowest_rank() -> None:
    made, batches = ranks()
    batches.gathered(1, [1, 4], [100, 90_000])
    lock_step = LockStep(PRIOR, PROFILE.decode, 2)
    other = RankLoad(4, 90_000, 22_500)
    table = made.beside(PRIOR)
    for batch, context in ((1, 100), (8, 20_000), (60, 190_000)):
        together = lock_step.step_s([RankLoad(batch, context), other])
        assert table.step_s(batch, context) == pytest.approx(together)
    assert table.step_s(1, 100) > PRIOR.step_s(1, 100)


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_learns_the_same_from_the_slowest(rank: int) -> None:
    made, batches = ranks(rank)
    batches.gathered(7, [1, 4], [100, 90_000])
    step_s = LockStep(PRIOR, PROFILE.decode, 2).step_s([RankLoad(1, 100), RankLoad(4, 90_000)])
    found = made.slowest(7, PRIOR, step_s)
    assert found is not None
    load, seconds = found
    assert (load.batch, load.total) == (4, 90_000)
    assert seconds == pytest.approx(PRIOR.step_s(4, 90_000))
    assert made.snapshot()["slowest_share"] == rank


def test_a_step_of_which_nothing_was_gathered_teaches_nothing() -> None:
    made, batches = ranks()
    assert made.slowest(1, PRIOR, 0.02) is None
    batches.gathered(2, [0, 0], [0, 0])
    assert made.slowest(2, PRIOR, 0.02) is None


def test_gathers_are_kept_for_the_steps_in_flight_only() -> None:
    made, batches = ranks()
    for step in range(1, 1_000):
        batches.gathered(step, [1, 1], [100, 100])
    assert made.slowest(1, PRIOR, 0.02) is None
    assert made.slowest(999, PRIOR, 0.02) is not None


def test_a_rank_that_computes_a_prompt_counts_as_full() -> None:
    """Its new tokens are more than the requests of any decode step."""
    made, batches = ranks()
    batches.gathered(1, [3, 5_000], [6_000, 12_000_000])
    assert made.beside(PRIOR).step_s(3, 6_000) > PRIOR.step_s(3, 6_000)
    assert made.slowest(1, PRIOR, 9.0) is not None


def test_a_learned_table_replaces_the_prior() -> None:
    slower = PRIOR._replace(seconds=1.5 * PRIOR.seconds)
    made, batches = ranks()
    batches.gathered(1, [1, 4], [100, 90_000])
    assert made.beside(slower).step_s(1, 100) > 1.3 * made.beside(PRIOR).step_s(1, 100)
    assert made.beside(PRIOR).step_s(1, 100) == pytest.approx(
        LockStep(PRIOR, PROFILE.decode, 2).step_s([RankLoad(1, 100), RankLoad(4, 90_000)])
    )


def test_prediction_uses_the_table_beside_the_others() -> None:
    made, batches = ranks()
    steps = DecodeSteps(PRIOR, SharedClock(1), overlap=True, ranks=made)
    alone, factor = steps.of_next_step()
    batches.gathered(1, [1, 30], [100, 150_000])
    beside, _ = steps.of_next_step()
    assert factor == 1.0
    assert np.all(beside.seconds >= alone.seconds)
    assert beside.step_s(1, 100) > alone.step_s(1, 100)
