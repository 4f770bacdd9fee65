"""The planner's prompts stay in step with the scheduler's lists, whatever happens to those."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sglang.srt.kairos import upstream
from sglang.srt.kairos.prefill.jobs import PrefillJobs
from sglang.srt.kairos.request_slo import RequestSlo
from sglang.srt.kairos.request_state import RequestState

from kairos.latency import load_profile
from kairos.policy.priorities import PriorityQueues
from kairos.slo import Slo
from support.fake_req import FakeReq
from support.fake_scheduler import FakePolicy

MODEL = load_profile("tiny-fast").prefill
UNORDERED = FakePolicy()


class CountedReq(FakeReq):
    """Counts how often Kairos looks into the request."""

    looks = 0

    def __getattribute__(self, name: str) -> object:
        if name == "kairos":
            self.looks += 1
        return super().__getattribute__(name)


def request(number: int) -> CountedReq:
    return CountedReq(
        f"r{number}", [0] * 100, RequestState(RequestSlo(Slo(1_000, 50), 0.0), number)
    )


class Lists(RuleBasedStateMachine):
    """A scheduler's lists, changed in any way between passes and while a batch is formed."""

    pick = st.integers(0, 1_000)

    def __init__(self) -> None:
        super().__init__()
        self.queue = PriorityQueues(MODEL, 2048)
        self.jobs = PrefillJobs(self.queue)
        self.waiting: list[upstream.Req] = []
        self.started: list[upstream.Req] = []
        self.numbers = 0

    def a_new_one(self) -> FakeReq:
        self.numbers += 1
        return request(self.numbers)

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
        assert len(self.jobs) == len(self.queue) == len(known)
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


def test_requests_of_the_last_pass_are_not_looked_into() -> None:
    jobs = PrefillJobs(PriorityQueues(MODEL, 2048))
    waiting: list[upstream.Req] = [request(number) for number in range(1, 101)]
    started: list[upstream.Req] = []
    jobs.sync(waiting, started, UNORDERED)
    started.append(waiting.pop(0))
    jobs.note_start(1)
    jobs.record_queue(waiting)
    known = [req for req in waiting if isinstance(req, CountedReq)]
    for req in known:
        req.looks = 0
    waiting.append(request(200))
    assert jobs.sync(waiting, started, UNORDERED) == waiting[-1:]
    assert len(known) == 99
    assert not any(req.looks for req in known)
    assert 200 in jobs


def test_clearing_drops_every_request() -> None:
    jobs = PrefillJobs(PriorityQueues(MODEL, 2048))
    jobs.sync([request(1), request(2)], (), UNORDERED)
    jobs.record_queue([request(1)])
    jobs.clear()
    assert not jobs
    assert 1 not in jobs
