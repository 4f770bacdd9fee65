"""The loop of a decode scheduler in virtual time: which request gets which token when."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.kairos.request_state import StreamedToken
from sglang.srt.kairos.upstream import ScheduleBatch

from kairos.policy.residents import Rows
from kairos_patches.decode import get_decode_retraction_order
from support.decode_loop import MODEL, STARVATION_S, Batch, Finish, Loop, as_batch

arrivals = st.lists(
    st.tuples(
        st.integers(0, 30),  # passes before it joins
        st.integers(1, 20_000),
        st.integers(2, 120),
        st.sampled_from([0.5, 8.2, 9.0, 30.0, 200.0]),
        st.sampled_from([5.0, 300.0, 1e6]),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(arrivals, st.booleans(), st.booleans(), st.integers(1, 24))
def test_every_request_gets_every_token_in_time(rows, overlap, hold, max_batch) -> None:
    loop = Loop(overlap, hold, max_batch)
    reqs = []
    for passes, prompt, new, tpot_ms, ttft_ms in rows:
        for _ in range(passes):
            loop.turn()
        reqs.append(loop.join(prompt, new, tpot_ms, ttft_ms))
    loop.drain()
    assert max(loop.sizes) <= max_batch
    longest_s = 2 * MODEL.step_s(64, 64 * 20_000, 20_000)
    # Starving requests take turns when a step has no room for all of them.
    turns = 2 + len(reqs) / max(1, max_batch // 2)
    for req in reqs:
        assert len(req.output_ids) == req.sampling_params.max_new_tokens
        assert req.length - len(req.origin_input_ids) >= len(req.token_s)
        first = loop.first_s[req.kairos.number]
        assert first <= max(req.kairos.arrival_s, req.kairos.ttft_deadline_s)
        times = [first, *req.token_s]
        assert times == sorted(times)
        if not hold:
            gaps = np.diff(times)
            assert gaps.max() <= STARVATION_S + turns * longest_s


STEP_OF_TWO_S = MODEL.step_s(2, 2_100, 1_100)


def busy_with_one() -> Loop:
    """A loop that holds first tokens, and one request in its steps."""
    loop = Loop(overlap=True, hold=True)
    loop.join(1_000, 50, 100.0)
    for _ in range(5):
        loop.turn()
    return loop


def test_held_token_is_streamed_when_its_step_starts() -> None:
    """Streamed when the step is prepared, the token would be one step early under overlap."""
    loop = busy_with_one()
    req = loop.join(1_000, 3, 100.0)
    loop.drain()
    waited_s = req.token_s[0] - loop.first_s[req.kairos.number]
    assert waited_s == pytest.approx(STEP_OF_TWO_S, rel=0.01)


def test_held_token_with_near_deadline_is_streamed_at_once() -> None:
    loop = busy_with_one()
    begin = loop.now
    req = loop.join(1_000, 3, 100.0, ttft_ms=1e3 * (1.5 * STEP_OF_TWO_S) + 5.0)
    loop.turn()
    assert loop.first_s[req.kairos.number] == begin


def test_rows_follow_the_tokens() -> None:
    loop = Loop(overlap=True)
    for at in range(12):
        loop.join(1_000 + 500 * at, 60, 8.2 if at % 2 else 100.0)
        loop.turn()
    for _ in range(20):
        loop.turn()
        rows = loop.batcher.rows
        assert [req.kairos.number for req in rows.reqs] == rows.rows["id"].tolist()
        firsts = [loop.first_s[number] for number in rows.rows["id"].tolist()]
        assert rows.rows["first_token_s"].tolist() == firsts


def test_rows_follow_the_tokens_while_selection_is_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = Loop(overlap=True)
    selections = []
    select = loop.policy.select

    def counted(rows: Rows, now_s: float) -> float:
        selections.append(now_s)
        return select(rows, now_s)

    monkeypatch.setattr(loop.policy, "select", counted)
    reqs = [loop.join(1_000, 100, 200.0) for _ in range(4)]
    for _ in range(60):
        loop.turn()
    state = loop.batcher.snapshot()
    assert state["steps_selection_skipped"] > 40
    assert len(selections) == state["steps"] - state["steps_selection_skipped"]
    rows = loop.batcher.rows.rows
    # The last token of each is still to be processed, and the newest step to be counted.
    assert rows["context_tokens"].tolist() == [req.length - 1 for req in reqs]
    assert rows["output_tokens"].tolist() == [req.length - 1 - 1_000 for req in reqs]
    # The step is planned from the end of the step in flight.
    assert rows["last_token_s"].min() >= loop.now - 1e-9


def test_joining_and_leaving_requests_end_skipped_selection() -> None:
    loop = Loop(overlap=True)
    for _ in range(4):
        loop.join(1_000, 100, 200.0)
    for _ in range(20):
        loop.turn()
    assert loop.batcher.selection_skipped
    joining = loop.join(3_000, 5, 200.0)
    loop.turn()
    assert joining.kairos.number in loop.batcher.rows.rows["id"]
    for _ in range(8):
        loop.turn()
    assert joining.finished_reason is not None
    assert joining.kairos.number not in loop.batcher.rows.rows["id"]


def skipping_loop(overlap: bool = True) -> Loop:
    """A loop of 14 requests of which two are always skipped."""
    loop = Loop(overlap)

    def select(rows: Rows, now_s: float) -> float:
        rows["infeasible"] = rows["tpot_s"] < 0.001
        rows["runs"] = ~rows["infeasible"]
        return loop.policy.running_step_s(rows)

    loop.policy.select = select
    for at in range(14):
        loop.join(3_000, 400, 0.01 if at < 2 else 8.7)
    for _ in range(6):
        loop.turn()
    assert loop.batcher.snapshot()["skipped"] == 2
    return loop


@pytest.mark.parametrize("overlap", [True, False])
def test_unchanged_selection_is_not_split_again(overlap: bool) -> None:
    loop = skipping_loop(overlap)
    before = loop.batcher.snapshot()
    for _ in range(5):
        loop.turn()
    after = loop.batcher.snapshot()
    assert after["steps_with_skips"] == before["steps_with_skips"] + 5
    assert after["skips"] == before["skips"]


def test_aborted_request_runs_once_more_and_ends() -> None:
    loop = skipping_loop()
    aborted = next(req for req in loop.reqs if req.kairos.slo.tpot_ms < 1)
    made = len(aborted.token_s)
    aborted.to_finish = Finish()
    for _ in range(3):
        loop.turn()
    assert aborted.finished_reason is not None
    assert len(aborted.token_s) == made + 1
    loop.turn()
    assert aborted not in loop.reqs


@pytest.mark.parametrize("obstacle", ["beam search", "memory is short"])
def test_no_request_is_skipped_under_an_obstacle(obstacle: str) -> None:
    loop = skipping_loop()
    batch = as_batch(loop.running_batch)
    if obstacle == "beam search":
        batch.reqs[0].beam_group = object()
    else:
        loop.allocator.free = 11
    out = loop.update()
    assert len(out.reqs) == 14
    assert loop.batcher.snapshot()["steps_skipping_was_off"] == {obstacle: 1}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("frequency_penalty", -0.5),
        ("presence_penalty", 0.5),
        ("repetition_penalty", 1.1),
        ("min_new_tokens", 5),
    ],
)
@pytest.mark.parametrize("overlap", [True, False])
def test_request_with_a_penalty_runs_in_every_step_and_others_are_skipped(
    overlap: bool, option: str, value: float
) -> None:
    loop = Loop(overlap, max_batch=8)
    reqs = [loop.join(3_000, 100, 30.0) for _ in range(20)]
    penalised = reqs[7]
    setattr(penalised.sampling_params, option, value)
    while penalised in loop.reqs:
        loop.turn()
        assert penalised.finished() or penalised in as_batch(loop.last_batch).reqs
    assert loop.batcher.snapshot()["steps_with_skips"] > 50
    loop.drain()


def test_no_request_is_skipped_where_penalties_exceed_the_largest_step() -> None:
    loop = Loop(overlap=True, max_batch=8)
    for _ in range(10):
        loop.join(3_000, 100, 30.0).sampling_params.presence_penalty = 0.5
    assert len(loop.update().reqs) == 10
    assert loop.batcher.snapshot()["steps_skipping_was_off"] == {"penalties": 1}


@pytest.mark.parametrize("overlap", [True, False])
def test_clocks_of_requests_stop_during_a_pause(overlap: bool) -> None:
    loop = Loop(overlap)
    reqs = [loop.join(1_000, 300, 50.0) for _ in range(4)]
    for _ in range(20):
        loop.turn()
    before = loop.batcher.rows.rows.copy()
    loop.pause(30.0)
    loop.turn()
    after = loop.batcher.rows.rows
    assert after["first_token_s"] - before["first_token_s"] == pytest.approx(30.0, abs=0.1)
    assert not after["infeasible"].any()
    streamed = [req.kairos.first_token for req in reqs]
    assert [one.at_s for one in streamed if isinstance(one, StreamedToken)] == pytest.approx(
        after["first_token_s"]
    )
    loop.turn()
    assert loop.batcher.rows.rows["first_token_s"].tolist() == after["first_token_s"].tolist()
    loop.drain()


@pytest.mark.parametrize("overlap", [True, False])
def test_clocks_of_requests_stop_during_a_pause_that_retracts_them(overlap: bool) -> None:
    loop = Loop(overlap)
    for _ in range(4):
        loop.join(1_000, 300, 50.0)
    for _ in range(20):
        loop.turn()
    before = loop.batcher.rows.rows["first_token_s"].copy()
    back = loop.pause_retracting(30.0)
    loop.turn()
    loop.running_batch = Batch(back, loop.allocator)
    loop.turn()
    rows = loop.batcher.rows.rows
    assert rows["first_token_s"] - before == pytest.approx(30.0, abs=0.1)
    assert not rows["infeasible"].any()
    loop.drain()


def test_memory_for_the_selected_requests_suffices_for_skipping() -> None:
    loop = skipping_loop()
    loop.allocator.free = 12
    out = loop.update()
    assert len(out.reqs) == 12
    assert loop.batcher.snapshot()["steps_skipping_was_off"] == {}


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("aborted", [1, 5, 20])
def test_aborts_keep_steps_within_the_largest(overlap: bool, aborted: int) -> None:
    loop = Loop(overlap, max_batch=8)
    reqs = [loop.join(3_000, 400, 30.0) for _ in range(20)]
    for _ in range(20):
        loop.turn()
    resting = sorted(reqs, key=lambda req: len(req.token_s))
    for req in resting[:aborted]:
        req.to_finish = Finish()
    # A step for every eight of them; under overlap its result comes after another one.
    for _ in range((1 + overlap) * -(-aborted // 8)):
        loop.turn()
    assert all(req.finished_reason is not None for req in resting[:aborted])
    loop.drain()
    assert max(loop.sizes) == 8
    assert all(len(req.output_ids) == 400 for req in resting[aborted:])


def test_step_that_is_never_launched_loses_no_request() -> None:
    loop = skipping_loop()
    out = loop.update()
    assert len(out.reqs) == 12
    loop.running_batch = out
    again = loop.update()
    loop.running_batch = again
    loop.batcher.merge_launched(loop)
    assert len(loop.reqs) == 12, "it is not merged before its launch"
    loop.launch(again)
    assert len(loop.reqs) == 14


def test_skipped_requests_stay_when_upstream_retracts_others() -> None:
    loop = skipping_loop()

    def retract(scheduler: Loop, batch: ScheduleBatch) -> Batch:
        updated = as_batch(batch)
        updated.reqs[0].is_retracted = True
        updated.filter_batch(keep_indices=list(range(1, len(batch.reqs))))
        return loop.upstream_update(scheduler, updated)

    out = as_batch(loop.batcher.update(retract, loop, loop.running_batch))
    loop.running_batch = out
    loop.launch(out)
    as_batch(loop.running_batch).check()
    assert len(loop.reqs) == 13
    assert loop.batcher.snapshot()["retractions"] == 1
    loop.turn()
    assert len(loop.batcher.rows.reqs) == 13


def test_infeasible_requests_are_retracted_first() -> None:
    loop = skipping_loop()
    loop.allocator.free = 3
    loop.turn()
    reqs = loop.reqs
    order = get_decode_retraction_order(lambda reqs: list(range(len(reqs))), reqs)
    assert sorted(order) == list(range(14))
    assert {reqs[at].kairos.slo.tpot_ms for at in order[-2:]} == {0.01}


def test_upstreams_retraction_order_is_kept_without_ranks_for_all() -> None:
    loop = skipping_loop()
    reqs = loop.reqs
    assert get_decode_retraction_order(lambda _: [2, 0, 1], reqs[:3]) == [2, 0, 1]
