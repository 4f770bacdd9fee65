"""The time of a step of data-parallel attention ranks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kairos.latency import Chunk, load_profile
from kairos_emulation.rank_step import RankStep, RankWork

PROFILE = load_profile("minimax-m2.5-tp4-h200")
IDLE = RankWork(prefill=False, tokens=0, attention_pairs=0)


def decoding(contexts: list[int]) -> RankWork:
    return RankWork(prefill=False, tokens=len(contexts), attention_pairs=sum(contexts))


def computing(chunks: list[Chunk]) -> RankWork:
    """The work of a prefill batch, with the pairs as upstream counts them."""
    return RankWork(
        prefill=True,
        tokens=sum(chunk.new for chunk in chunks),
        attention_pairs=sum(c.new * c.context + c.new * (c.new + 1) // 2 for c in chunks),
    )


contexts = st.lists(st.integers(1, 100_000), max_size=20)
chunk_lists = st.lists(
    st.builds(Chunk, st.integers(0, 100_000), st.integers(1, 8_000)), min_size=1, max_size=4
)


@given(contexts.filter(bool))
def test_a_rank_whose_peers_are_idle_decodes_as_fast_as_a_server_without_ranks(own):
    times = RankStep((IDLE, decoding(own), IDLE), 0.0).times(1, PROFILE)
    assert times.duration_s == pytest.approx(PROFILE.decode.step_s(len(own), sum(own)))
    assert times.waited_s == 0.0


@given(chunk_lists)
def test_a_rank_whose_peers_are_idle_prefills_as_fast_as_a_server_without_ranks(own):
    times = RankStep((IDLE, computing(own)), 0.0).times(1, PROFILE)
    assert times.duration_s == pytest.approx(PROFILE.prefill.batch_s(own))
    assert times.waited_s == 0.0


@given(st.lists(contexts, min_size=2, max_size=8).filter(any))
def test_a_decode_step_has_one_duration_and_its_slowest_rank_does_not_wait(ranks):
    step = RankStep(tuple(map(decoding, ranks)), 0.0)
    times = [step.times(rank, PROFILE) for rank in range(len(ranks))]
    decode = PROFILE.decode
    requests = sum(map(len, ranks))
    experts_s = decode.experts_s * (1.0 - (1.0 - decode.expert_fraction) ** requests)
    own_s = [
        decode.per_request_s * len(own) + decode.per_context_token_s * sum(own) for own in ranks
    ]
    assert {one.duration_s for one in times} == {times[0].duration_s}
    assert times[0].duration_s == pytest.approx(decode.fixed_s + experts_s + max(own_s))
    for one, own in zip(times, own_s, strict=True):
        assert one.waited_s == pytest.approx(max(own_s) - own)
    assert min(one.waited_s for one in times) == 0.0


@given(st.lists(chunk_lists, min_size=2, max_size=4))
def test_prefill_batches_of_all_ranks_end_with_the_longest(ranks):
    step = RankStep(tuple(map(computing, ranks)), 0.0)
    longest_s = max(PROFILE.prefill.batch_s(own) for own in ranks)
    assert step.times(0, PROFILE).duration_s == pytest.approx(longest_s)


def test_prefill_on_one_rank_holds_up_decode_on_another():
    chunk = Chunk(0, 8_000)
    step = RankStep((computing([chunk]), decoding([100])), 0.0)
    prefill_s = PROFILE.prefill.batch_s([chunk])
    assert step.times(1, PROFILE).duration_s >= prefill_s
    assert step.times(1, PROFILE).waited_s == pytest.approx(prefill_s, rel=0.1)
