"""Steps of data-parallel ranks: all of them wait for the slowest."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kairos.errors import InputError
from kairos.latency import load_profile
from kairos.latency.profile import parse_profile
from kairos.latency.ranks import LockStep, RankLoad
from kairos.latency.table import StepTable

PROFILE = load_profile("minimax-m2.5-dp8-h200")
MODEL = PROFILE.decode
TABLE = StepTable.from_model(MODEL, 256, PROFILE.limits.kv_tokens)

loads = st.lists(st.integers(1, 120_000), max_size=40).map(
    lambda contexts: RankLoad(len(contexts), float(sum(contexts)), float(max(contexts, default=0)))
)


def formula_s(batches: list[RankLoad]) -> float:
    """The step of the profile's model, written out."""
    total = sum(load.batch for load in batches)
    experts_s = MODEL.experts_s * (1.0 - (1.0 - MODEL.expert_fraction) ** total)
    slowest_s = max(
        MODEL.per_request_s * load.batch + MODEL.per_context_token_s * load.context_tokens
        for load in batches
    )
    return MODEL.fixed_s + experts_s + slowest_s if total else 0.0


@settings(deadline=None)
@given(st.lists(loads, min_size=2, max_size=9))
def test_a_step_has_the_experts_of_all_ranks_and_the_attention_of_the_slowest(batches):
    steps = LockStep(TABLE, MODEL, len(batches))
    assert steps.step_s(batches) == pytest.approx(formula_s(batches))


@settings(deadline=None)
@given(st.lists(loads, min_size=2, max_size=9))
def test_a_step_is_never_shorter_than_the_step_of_any_rank_alone(batches):
    steps = LockStep(TABLE, MODEL, len(batches))
    alone_s = [TABLE.step_s(*load) for load in batches]
    assert steps.step_s(batches) >= max(alone_s) - 1e-12


@settings(deadline=None)
@given(loads.filter(lambda load: load.batch > 0), st.lists(loads, min_size=1, max_size=8))
def test_the_table_of_a_rank_is_the_maximum_over_all_ranks(own, others):
    steps = LockStep(TABLE, MODEL, 1 + len(others))
    looked_up_s = steps.table_beside(others).step_s(*own)
    assert looked_up_s == pytest.approx(formula_s([own, *others]))
    for load, table in zip([own, *others], steps.tables([own, *others]), strict=True):
        if load.batch:
            assert table.step_s(*load) == pytest.approx(looked_up_s)


@given(loads)
def test_one_rank_has_the_steps_of_the_table_exactly(load):
    steps = LockStep(TABLE, MODEL, 1)
    assert steps.table_beside([]) is TABLE
    assert steps.step_s([load]) == TABLE.step_s(*load)


def test_learned_tables_keep_what_the_ranks_share_apart():
    learned = TABLE._replace(seconds=1.5 * TABLE.seconds)
    steps = LockStep(learned, MODEL, 2)
    own, other = RankLoad(4, 40_000.0, 10_000.0), RankLoad(30, 300_000.0, 10_000.0)
    shared_s = MODEL.shared_s(34) - MODEL.shared_s(30)
    assert steps.step_s([own, other]) == pytest.approx(learned.step_s(*other) + shared_s)


def test_a_biased_prediction_scales_the_shared_part_as_well():
    biased = LockStep(TABLE._replace(seconds=2.0 * TABLE.seconds), MODEL, 2, 2.0)
    batches = [RankLoad(4, 40_000.0, 10_000.0), RankLoad(30, 300_000.0, 10_000.0)]
    assert biased.step_s(batches) == pytest.approx(2.0 * formula_s(batches))


def test_a_profile_has_one_rank_unless_it_says_otherwise():
    assert load_profile("minimax-m2.5-tp4-h200").ranks == 1
    assert PROFILE.ranks == 8
    assert PROFILE.provenance.kind == "assumed"
    text = msgspec.json.encode(msgspec.structs.replace(PROFILE, ranks=0)).decode()
    with pytest.raises(InputError, match="field ranks: 0 is out of range, allowed are 1 to 1024"):
        parse_profile(text, "bad.json")


def test_floors_do_not_change_a_table_without_other_ranks():
    assert TABLE.floor_s.tolist() == [0.0]
    assert np.isfinite(TABLE.seconds).all()
