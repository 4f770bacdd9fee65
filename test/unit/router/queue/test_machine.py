"""Whatever happens, in whatever order: behaviours 1 to 3 of the router's scheduling."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from kairos.router.placement.load import WorkerLoad
from kairos.router.workers.endpoint import Role
from support.dispatching import PROFILE, dispatcher, work

KV = 40_000
KEYS = ("p0", "p1", "d0", "d1")


class Machine(RuleBasedStateMachine):
    """A model of what was offered, beside the dispatcher."""

    requests = Bundle("requests")
    sent_ones = Bundle("sent_ones")

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.next_id = 0
        self.made = dispatcher(2, 2, preemptive=True, decode_kv=KV, max_requests=20)
        self.up = dict.fromkeys(KEYS, True)
        self.queued: set[int] = set()
        self.sent: dict[int, tuple[str, str]] = {}

    @rule(
        target=requests,
        tokens=st.integers(1, 60_000),
        ttft_ms=st.sampled_from([1.0, 500.0, 5_000.0]),
        tenant=st.sampled_from("abc"),
        output=st.integers(1, 4_000),
        best_effort=st.booleans(),
    )
    def offer(self, tokens, ttft_ms, tenant, output, best_effort):
        id, self.next_id = self.next_id, self.next_id + 1
        asked = work(
            id,
            self.now,
            tokens,
            ttft_ms=ttft_ms,
            tenant=tenant,
            max_output_tokens=output,
            best_effort=best_effort,
            body_bytes=tokens,
        )
        verdict = self.made.offer(asked, self.now)
        assert verdict.queued == (verdict.retry_after_s == 0.0 and verdict.reason is None) or (
            verdict.reason is not None
        )
        if tokens + 1 > KV:
            assert not verdict.queued
        if verdict.queued:
            self.queued.add(id)
        return id

    @rule(target=sent_ones, wait=st.floats(0.0, 3.0))
    def dispatch(self, wait):
        self.now += wait
        assignments = self.made.dispatch(self.now)
        for one in assignments:
            self.queued.remove(one.id)
            self.sent[one.id] = (one.prefill, one.decode)
            assert self.up[one.prefill]
            assert self.up[one.decode]
        return multiple(*[one.id for one in assignments])

    @rule(id=sent_ones)
    def prefill_done(self, id):
        self.made.prefill_done(id, self.now)

    @rule(id=sent_ones)
    def first_token(self, id):
        self.made.prefill_done(id, self.now)

    @rule(id=consumes(sent_ones), tokens=st.none() | st.integers(0, 5_000))
    def finished(self, id, tokens):
        self.made.finished(id, self.now, tokens)
        self.sent.pop(id, None)

    @rule(id=requests)
    def cancelled(self, id):
        self.made.cancelled(id, self.now)
        self.queued.discard(id)
        self.sent.pop(id, None)

    @rule(id=sent_ones)
    def requeue(self, id):
        assert self.made.requeue(id, self.now) == (id in self.sent)
        if self.sent.pop(id, None) is not None:
            self.queued.add(id)

    @rule(key=st.sampled_from(KEYS))
    def toggle(self, key):
        self.up[key] = not self.up[key]
        self.made.set_available(key, self.up[key])

    @rule(key=st.sampled_from(KEYS))
    def replace(self, key):
        held = {id for id, pair in self.sent.items() if key in pair}
        assert set(self.made.remove_worker(key)) == held
        for id in held:
            self.made.cancelled(id, self.now)
            del self.sent[id]
        role = Role.PREFILL if key.startswith("p") else Role.DECODE
        self.made.add_worker(key, role, PROFILE, preemptive=True, kv_tokens=KV)
        self.up[key] = True

    @rule(
        key=st.sampled_from(KEYS),
        age=st.floats(0.0, 4.0),
        used=st.none() | st.integers(0, KV),
        backlog=st.none() | st.floats(0.0, 10.0),
    )
    def report(self, key, age, used, backlog):
        load = WorkerLoad(self.now - age, used, KV, 3, 1, 64, 5_000, backlog)
        self.made.loads(key, load, self.now)

    @invariant()
    def nothing_is_lost(self):
        shown = self.made.snapshot(self.now)
        assert shown["queue"]["requests"] == len(self.queued) == self.made.waiting()
        assert shown["dispatched"] == len(self.sent)
        for key, instance in shown["workers"].items():
            held = [id for id, pair in self.sent.items() if key in pair]
            if instance["role"] == "decode":
                assert instance["dispatched"] == len(held)
                assert 0 <= instance["kv_reserved_tokens"] <= instance["kv_capacity_tokens"]
                assert held or instance["kv_reserved_tokens"] == 0

    @invariant()
    def it_wakes_up_while_anything_waits(self):
        wake = self.made.next_wake_s(self.now)
        pair = self.up["p0"] or self.up["p1"], self.up["d0"] or self.up["d1"]
        if self.queued and all(pair):
            assert self.now < wake <= self.now + 0.2
        else:
            assert wake is None

    def teardown(self) -> None:
        """At last everything that waits is served, if the instances do their work."""
        for key in KEYS:
            self.made.set_available(key, True)
        for id in list(self.sent):
            self.made.finished(id, self.now, 10)
        for _ in range(400):
            for one in self.made.dispatch(self.now):
                self.queued.remove(one.id)
                self.made.finished(one.id, self.now, 10)
            self.now += 1.0
            if not self.queued:
                break
        assert not self.queued


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
