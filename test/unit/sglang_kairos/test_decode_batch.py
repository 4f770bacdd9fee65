"""The loop of a decode scheduler against a reference of who got which token when.

Upstream's batch is replaced by lists with the same filtering and merging; upstream's loop by one
that calls the hooks in upstream's order.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.kairos.decode_batch import DecodeBatcher
from sglang.srt.kairos.decode_hold import HeldTokens
from sglang.srt.kairos.decode_rows import DecodeRows
from sglang.srt.kairos.decode_steps import DecodeSteps
from sglang.srt.kairos.request_slo import RequestSlo
from sglang.srt.kairos.shared_clock import SharedClock

from kairos.latency import load_profile
from kairos.latency.steps import CONTEXT_KNOTS
from kairos.latency.table import StepTable
from kairos.policy.length import LengthEstimator
from kairos.policy.slack import SlackParams, SlackPolicy
from kairos.slo import Slo, SloClasses
from kairos_patches.decode import get_decode_retraction_order

PROFILE = load_profile("tiny-fast")
MODEL = PROFILE.decode
STARVE_S = 0.5


class Lengths(np.ndarray):
    """An array that answers `numpy()`, as a tensor does."""

    def numpy(self) -> Any:
        return self.view(np.ndarray)


class Penalizer:
    def __init__(self, orchestrator: Any) -> None:
        self.orchestrator = orchestrator


class Batch:
    """What the batcher uses of upstream's `ScheduleBatch`."""

    def __init__(self, reqs: list[Any], free: Any) -> None:
        self.reqs = reqs
        self.seq_lens_cpu = np.array([req.length for req in reqs]).view(Lengths)
        orchestrator = SimpleNamespace(is_required=False, penalizers={Penalizer: None}, batch=self)
        self.sampling_info = SimpleNamespace(rows=list(reqs), penalizer_orchestrator=orchestrator)
        self.token_to_kv_pool_allocator = free
        self.tree_cache = SimpleNamespace(evictable_size=lambda: 0)
        self.batch_is_full = False

    def filter_batch(self, keep_indices: list[int] | None = None) -> None:
        if keep_indices is None:
            keep_indices = [i for i, r in enumerate(self.reqs) if r.finished_reason is None]
        if len(keep_indices) == len(self.reqs):
            return
        self.reqs = [self.reqs[i] for i in keep_indices]
        self.sampling_info.rows = [self.sampling_info.rows[i] for i in keep_indices]
        self.seq_lens_cpu = self.seq_lens_cpu[keep_indices]

    def merge_batch(self, other: "Batch") -> None:
        self.sampling_info.rows.extend(other.sampling_info.rows)  # in place, as upstream's lists
        self.seq_lens_cpu = np.concatenate([self.seq_lens_cpu, other.seq_lens_cpu]).view(Lengths)
        self.reqs = self.reqs + other.reqs

    def check_decode_mem(self, selected_indices: list[int] | None = None) -> bool:
        needed = len(self.reqs if selected_indices is None else selected_indices)
        return self.token_to_kv_pool_allocator.available_size() >= needed

    def check(self) -> None:
        assert self.sampling_info.rows == self.reqs
        assert self.seq_lens_cpu.tolist() == [req.length for req in self.reqs]
        assert self.sampling_info.penalizer_orchestrator.batch is self


class Ended:
    def to_json(self) -> dict[str, str]:
        return {"type": "length"}


class Loop:
    """Upstream's event loop with virtual time."""

    def __init__(self, overlap: bool, hold: bool = False, max_batch: int = 16) -> None:
        self.now = 100.0
        self.clock = SharedClock(1, lambda: self.now)
        prior = StepTable.from_model(MODEL, 64, 50_000, knots=CONTEXT_KNOTS)
        params = SlackParams()._replace(starve_s=STARVE_S)
        self.policy = SlackPolicy(prior, max_batch, params, LengthEstimator())
        self.steps = DecodeSteps(prior, self.clock, overlap)
        self.held = HeldTokens() if hold else None
        self.batcher = DecodeBatcher(
            self.policy,
            DecodeRows(SloClasses(Slo(2000, 50))),
            self.steps,
            self.clock,
            overlap,
            self.held,
            reload_s_per_token=1e-6,
        )
        self.free = SimpleNamespace(available_size=lambda: 10**6, page_size=1)
        self.running_batch: Any = Batch([], self.free)
        self.last_batch: Any = None
        self.overlap = overlap
        self.launched: list[Any] = []
        self.first_s: dict[int, float] = {}
        self.output_streamer = SimpleNamespace(stream_output=self._stream)
        self.made = 0
        self.sizes: list[int] = []

    def _stream(self, reqs: list[Any], logprob: bool) -> None:
        for req in reqs:
            assert req.kairos.number not in self.first_s
            self.first_s[req.kairos.number] = self.now

    def join(self, prompt: int, new: int, tpot_ms: float, ttft_ms: float = 1e6) -> Any:
        self.made += 1
        request = RequestSlo(Slo(ttft_ms, tpot_ms), self.now, self.made)
        req = SimpleNamespace(
            kairos=request,
            origin_input_ids=[0] * prompt,
            output_ids=[0],
            length=prompt,
            finished_reason=None,
            to_finish=None,
            beam_group=None,
            is_retracted=False,
            return_logprob=False,
            sampling_params=SimpleNamespace(max_new_tokens=new),
            token_s=[],
        )
        if self.held is not None:
            self.held.mark([req], self.now)
        if not request.held:
            self._stream([req], False)
        joining = Batch([req], self.free)
        if self.running_batch.reqs:
            self.running_batch.merge_batch(joining)
        else:
            self.running_batch = joining
        return req

    def upstream_update(self, scheduler: Any, batch: Batch) -> Batch:
        batch.filter_batch()
        for req in batch.reqs:
            req.length += 1
        batch.seq_lens_cpu = batch.seq_lens_cpu + 1
        return batch

    def turn(self) -> None:
        """One pass of the event loop; with overlap the result of the step before is processed."""
        original = self.upstream_update
        everybody = {
            req.kairos.number for req in self.running_batch.reqs if not req.finished_reason
        }
        batch = self.batcher.update(original, self, self.running_batch)
        self.running_batch = batch
        if not batch.reqs:
            self.last_batch = None
            self.launched = []
            return
        ran = list(batch.reqs)
        self.sizes.append(len(ran))
        self.batcher.launched(self, batch)
        self.running_batch.check()
        assert {req.kairos.number for req in self.running_batch.reqs} == everybody
        assert batch.reqs == ran, "the batch in flight must stay as it is"
        self.launched.append(ran)
        self.last_batch = batch
        lengths = [req.length for req in ran]
        self.now += MODEL.step_s(len(ran), sum(lengths), max(lengths))
        if not self.overlap or len(self.launched) > 1:
            self.process(self.launched.pop(0))
            self.batcher.begun(self)

    def process(self, ran: list[Any]) -> None:
        for req in ran:
            if req.finished_reason is not None:
                continue  # the one redundant step of overlap
            req.output_ids.append(0)
            req.token_s.append(self.now)
            if req.to_finish or len(req.output_ids) >= req.sampling_params.max_new_tokens:
                req.finished_reason = req.to_finish or Ended()

    def drain(self, limit: int = 20_000) -> None:
        for _ in range(limit):
            if not self.running_batch.reqs:
                return
            self.turn()
        raise AssertionError("requests never end")


asked = st.lists(
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
@given(asked, st.booleans(), st.booleans(), st.integers(1, 24))
def test_everybody_gets_every_token_in_time(rows, overlap, hold, max_batch) -> None:
    loop = Loop(overlap, hold, max_batch)
    reqs = []
    for passes, prompt, new, tpot_ms, ttft_ms in rows:
        for _ in range(passes):
            loop.turn()
        reqs.append(loop.join(prompt, new, tpot_ms, ttft_ms))
    loop.drain()
    assert max(loop.sizes) <= max_batch
    longest_s = 2 * MODEL.step_s(64, 64 * 20_000, 20_000)
    # When more starve than fit into a step, they take turns.
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
            assert gaps.max() <= STARVE_S + turns * longest_s


STEP_OF_TWO_S = MODEL.step_s(2, 2_100, 1_100)


def busy_with_one() -> Loop:
    """A loop that holds first tokens, and one request in its steps."""
    loop = Loop(overlap=True, hold=True)
    loop.join(1_000, 50, 100.0)
    for _ in range(5):
        loop.turn()
    return loop


def test_a_held_token_is_streamed_when_its_step_starts_and_not_when_it_is_prepared() -> None:
    """Two steps passed between first and second token instead of one: many for short outputs."""
    loop = busy_with_one()
    req = loop.join(1_000, 3, 100.0)
    loop.drain()
    waited_s = req.token_s[0] - loop.first_s[req.kairos.number]
    assert waited_s == pytest.approx(STEP_OF_TWO_S, rel=0.01)


def test_a_held_token_whose_deadline_is_near_does_not_wait_for_its_step() -> None:
    loop = busy_with_one()
    begin = loop.now
    req = loop.join(1_000, 3, 100.0, ttft_ms=1e3 * (1.5 * STEP_OF_TWO_S) + 5.0)
    loop.turn()
    assert loop.first_s[req.kairos.number] == begin


def test_the_rows_follow_the_tokens() -> None:
    loop = Loop(overlap=True)
    for at in range(12):
        loop.join(1_000 + 500 * at, 60, 8.2 if at % 2 else 100.0)
        loop.turn()
    for _ in range(20):
        loop.turn()
        rows = loop.batcher.rows
        assert [req.kairos.number for req in rows.reqs] == rows.rows["id"].tolist()
        firsts = [loop.first_s[number] for number in rows.rows["id"].tolist()]
        assert rows.rows["first"].tolist() == firsts


def test_at_ease_nobody_is_looked_at_and_the_rows_follow_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = Loop(overlap=True)
    selections = []
    select = loop.policy.select

    def counted(rows: Any, now_s: float) -> float:
        selections.append(now_s)
        return select(rows, now_s)

    monkeypatch.setattr(loop.policy, "select", counted)
    reqs = [loop.join(1_000, 100, 200.0) for _ in range(4)]
    for _ in range(60):
        loop.turn()
    state = loop.batcher.snapshot()
    assert state["steps_at_ease"] > 40
    assert len(selections) == state["steps"] - state["steps_at_ease"]
    rows = loop.batcher.rows.rows
    # The last token of each is still to be processed, and the newest step to be counted.
    assert rows["context"].tolist() == [req.length - 1 for req in reqs]
    assert rows["tokens"].tolist() == [req.length - 1 - 1_000 for req in reqs]
    # It has been planned for when the step ends that was in flight.
    assert rows["last"].min() >= loop.now - 1e-9


def test_who_joins_or_leaves_at_ease_is_looked_at() -> None:
    loop = Loop(overlap=True)
    for _ in range(4):
        loop.join(1_000, 100, 200.0)
    for _ in range(20):
        loop.turn()
    assert loop.batcher.at_ease
    late = loop.join(3_000, 5, 200.0)
    loop.turn()
    assert late.kairos.number in loop.batcher.rows.rows["id"]
    for _ in range(8):
        loop.turn()
    assert late.finished_reason is not None
    assert late.kairos.number not in loop.batcher.rows.rows["id"]


def parked_loop(overlap: bool = True) -> Loop:
    """Two requests of 14 that always sit out."""
    loop = Loop(overlap)

    def select(rows: Any, now_s: float) -> float:
        rows["victim"] = rows["tau"] < 0.001
        rows["runs"] = ~rows["victim"]
        return loop.policy.running_step_s(rows)

    loop.policy.select = select  # type: ignore[method-assign]
    for at in range(14):
        loop.join(3_000, 400, 0.01 if at < 2 else 8.7)
    for _ in range(6):
        loop.turn()
    assert loop.batcher.snapshot()["parked"] == 2
    return loop


@pytest.mark.parametrize("overlap", [True, False])
def test_an_unchanged_selection_is_not_split_again(overlap: bool) -> None:
    loop = parked_loop(overlap)
    before = loop.batcher.snapshot()
    for _ in range(5):
        loop.turn()
    after = loop.batcher.snapshot()
    assert after["steps_with_parked"] == before["steps_with_parked"] + 5
    assert after["parks"] == before["parks"]


def test_an_aborted_request_runs_once_more_and_ends() -> None:
    loop = parked_loop()
    victim = next(req for req in loop.running_batch.reqs if req.kairos.slo.tpot_ms < 1)
    made = len(victim.token_s)
    victim.to_finish = Ended()
    for _ in range(3):
        loop.turn()
    assert victim.finished_reason is not None
    assert len(victim.token_s) == made + 1
    loop.turn()
    assert victim not in loop.running_batch.reqs


@pytest.mark.parametrize("obstacle", ["penalties", "beam search", "memory is short"])
def test_nobody_is_parked_where_it_would_do_harm(obstacle: str) -> None:
    loop = parked_loop()
    batch = loop.running_batch
    if obstacle == "penalties":
        batch.sampling_info.penalizer_orchestrator.is_required = True
    elif obstacle == "beam search":
        batch.reqs[0].beam_group = object()
    else:
        loop.free.available_size = lambda: 11
    out = loop.batcher.update(loop.upstream_update, loop, batch)
    assert len(out.reqs) == 14
    assert loop.batcher.snapshot()["steps_parking_was_off"] == {obstacle: 1}


def test_with_memory_for_those_selected_nobody_is_retracted() -> None:
    loop = parked_loop()
    loop.free.available_size = lambda: 12
    out = loop.batcher.update(loop.upstream_update, loop, loop.running_batch)
    assert len(out.reqs) == 12
    assert loop.batcher.snapshot()["steps_parking_was_off"] == {}


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("aborted", [1, 5, 20])
def test_aborts_take_no_step_beyond_the_largest(overlap: bool, aborted: int) -> None:
    loop = Loop(overlap, max_batch=8)
    reqs = [loop.join(3_000, 400, 30.0) for _ in range(20)]
    for _ in range(20):
        loop.turn()
    resting = sorted(reqs, key=lambda req: len(req.token_s))
    for req in resting[:aborted]:
        req.to_finish = Ended()
    # A step for every eight of them; under overlap its result comes after another one.
    for _ in range((1 + overlap) * -(-aborted // 8)):
        loop.turn()
    assert all(req.finished_reason is not None for req in resting[:aborted])
    loop.drain()
    assert max(loop.sizes) == 8
    assert all(len(req.output_ids) == 400 for req in resting[aborted:])


def test_a_step_that_was_never_launched_loses_nobody() -> None:
    loop = parked_loop()
    out = loop.batcher.update(loop.upstream_update, loop, loop.running_batch)
    assert len(out.reqs) == 12
    again = loop.batcher.update(loop.upstream_update, loop, out)
    loop.running_batch = again
    loop.batcher.launched(loop, again)
    assert len(loop.running_batch.reqs) == 14


def test_those_that_upstream_retracts_are_gone_and_the_parked_stay() -> None:
    loop = parked_loop()

    def retract(scheduler: Any, batch: Batch) -> Batch:
        batch.reqs[0].is_retracted = True
        batch.filter_batch(keep_indices=list(range(1, len(batch.reqs))))
        return loop.upstream_update(scheduler, batch)

    out = loop.batcher.update(retract, loop, loop.running_batch)
    loop.running_batch = out
    loop.batcher.launched(loop, out)
    loop.running_batch.check()
    assert len(loop.running_batch.reqs) == 13
    assert loop.batcher.snapshot()["retractions"] == 1
    loop.turn()
    assert len(loop.batcher.rows.reqs) == 13


def test_short_of_memory_victims_are_retracted_first() -> None:
    loop = parked_loop()
    loop.free.available_size = lambda: 3
    loop.turn()
    reqs = loop.running_batch.reqs
    order = get_decode_retraction_order(lambda reqs: list(range(len(reqs))), reqs)
    assert sorted(order) == list(range(14))
    assert {reqs[at].kairos.slo.tpot_ms for at in order[-2:]} == {0.01}


def test_without_an_order_for_all_upstreams_is_kept() -> None:
    loop = parked_loop()
    reqs = loop.running_batch.reqs
    assert get_decode_retraction_order(lambda _: [2, 0, 1], reqs[:3]) == [2, 0, 1]
