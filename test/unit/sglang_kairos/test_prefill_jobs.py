"""The planner's prompts stay in step with the scheduler's lists, whatever happens to those."""

from types import SimpleNamespace
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sglang.srt.kairos.prefill_jobs import PrefillJobs
from sglang.srt.kairos.request_slo import RequestSlo

from kairos.latency import load_profile
from kairos.policy.priorities import PriorityQueues
from kairos.slo import Slo

MODEL = load_profile("tiny-fast").prefill
UNORDERED = SimpleNamespace(enable_priority_scheduling=False, priority_sign=-1)


class Req:
    """The fields of an upstream request that are read; counts how often it was looked into."""

    def __init__(self, number: int) -> None:
        self._slo = RequestSlo(Slo(1_000, 50), 0.0, number)
        self.looks = 0
        self.origin_input_ids = [0] * 100
        self.output_ids: list[int] = []
        self.num_matched_prefix_tokens = 0
        self.extend_end = 0
        self.priority: int | None = None

    @property
    def kairos(self) -> RequestSlo:
        self.looks += 1
        return self._slo


class Lists(RuleBasedStateMachine):
    """A scheduler's lists, changed in any way between passes and while a batch is formed."""

    pick = st.integers(0, 1_000)

    def __init__(self) -> None:
        super().__init__()
        self.jobs = PrefillJobs(PriorityQueues(MODEL, 2048))
        self.waiting: list[Req] = []
        self.started: list[Req] = []
        self.numbers = 0

    def a_new_one(self) -> Req:
        self.numbers += 1
        return Req(self.numbers)

    @rule(count=st.integers(1, 3))
    def arrive(self, count: int) -> None:
        self.waiting += [self.a_new_one() for _ in range(count)]

    @precondition(lambda self: self.waiting)
    @rule(which=pick)
    def abort_a_waiting_one(self, which: int) -> None:
        del self.waiting[which % len(self.waiting)]

    @precondition(lambda self: self.started)
    @rule(which=pick)
    def end_a_started_one(self, which: int) -> None:
        del self.started[which % len(self.started)]

    @precondition(lambda self: self.started)
    @rule(which=pick, last=st.booleans())
    def give_back_a_started_one(self, which: int, last: bool) -> None:
        req = self.started.pop(which % len(self.started))
        self.waiting.insert(len(self.waiting) if last else 0, req)

    @precondition(lambda self: self.waiting)
    @rule(which=pick)
    def upstream_starts_one_by_itself(self, which: int) -> None:
        self.started.append(self.waiting.pop(which % len(self.waiting)))

    @rule(which=pick, whole=st.integers(0, 2), starts=st.booleans(), come=st.booleans())
    def plan_a_batch(self, which: int, whole: int, starts: bool, come: bool) -> None:
        fresh = self.jobs.sync(self.waiting, self.started, UNORDERED)
        assert not [req for req in fresh if req not in self.waiting + self.started]
        known = {req.kairos.number for req in self.waiting + self.started}
        assert {number for number in range(1, self.numbers + 1) if number in self.jobs} == known
        assert len(self.jobs) == len(known)
        assert all(self.jobs.waits(req.kairos.number) for req in self.waiting)
        assert not any(self.jobs.waits(req.kairos.number) for req in self.started)
        for _ in range(min(whole, len(self.waiting))):
            self.jobs.drop(self.waiting.pop(which % len(self.waiting)).kairos.number)
        if starts and self.waiting:
            self.started.append(self.waiting.pop(which % len(self.waiting)))
            self.jobs.note_start(self.started[-1].kairos.number)
        if come:  # upstream adds requests whose grammar is ready while it forms a batch
            self.arrive(1)
        self.jobs.record_queue(self.waiting)

    @invariant()
    def each_is_the_same_request(self) -> None:
        for req in self.waiting + self.started:
            number = req.kairos.number
            assert number not in self.jobs or self.jobs[number] is req


TestLists = Lists.TestCase


def test_who_was_there_in_the_last_pass_is_not_looked_into() -> None:
    jobs = PrefillJobs(PriorityQueues(MODEL, 2048))
    waiting: list[Any] = [Req(number) for number in range(1, 101)]
    started: list[Any] = []
    jobs.sync(waiting, started, UNORDERED)
    started.append(waiting.pop(0))
    jobs.note_start(1)
    jobs.record_queue(waiting)
    waiting.append(Req(200))
    for req in waiting:
        req.looks = 0
    assert jobs.sync(waiting, started, UNORDERED) == waiting[-1:]
    assert not any(req.looks for req in waiting[:-1])
    assert 200 in jobs


def test_nothing_is_kept_of_what_is_gone() -> None:
    jobs = PrefillJobs(PriorityQueues(MODEL, 2048))
    jobs.sync([Req(1), Req(2)], (), UNORDERED)
    jobs.record_queue([Req(1)])
    jobs.clear()
    assert not jobs
    assert 1 not in jobs
