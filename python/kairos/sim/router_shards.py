"""The router's scheduling in closed loop: its dispatcher in front of simulated instances.

Prefill instances are those of the simulator. A decode instance is reduced to what the router has to
reckon with: memory that a request holds from its dispatch to its last token, one token per
`step_s`. An instance gives memory in its own order and starts no prefill without it.

Several dispatchers, each with instances of its own, are shards; a balancer that knows nothing of
the requests picks one.
"""

import heapq
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kairos.errors import InputError
from kairos.latency import Profile
from kairos.policy.jobs import PrefillJob, PrefillQueue
from kairos.policy.urgency import UrgencyParams, UrgencyQueue
from kairos.router.placement.prefix_index import PrefixIndex
from kairos.router.queue.demand import Assignment, RequestDemand
from kairos.router.queue.dispatcher import Dispatcher
from kairos.router.queue.params import DispatchParams
from kairos.router.workers.endpoint import Role
from kairos.sim.baselines.prefill import RankedQueue
from kairos.sim.prefill_server import PrefillServer
from kairos.slo import Slo
from kairos.workload.trace import BLOCK_TOKENS, TraceRequest

BALANCERS = ("random", "least")
ENGINES = ("urgency", "fcfs")

ARRIVED, STARTED, PREFILLED, FINISHED, WOKEN = range(5)


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """What is simulated.

    Attributes:
        shards: dispatchers.
        prefill: prefill instances of each.
        decode: decode instances of each.
        balancer: how requests get to shards: "random", or to the one with "least" requests.
        engine: order of a prefill instance's own queue: "urgency" (Kairos) or "fcfs" (upstream).
        params: of every dispatcher.
        handover_s: from dispatch until the prompt can be computed, seconds.
        step_s: one decode step, seconds.
        seed: of the balancer.
    """

    shards: int
    prefill: int
    decode: int
    balancer: str = "random"
    engine: str = "urgency"
    params: DispatchParams = field(default_factory=DispatchParams)
    handover_s: float = 0.02
    step_s: float = 0.03
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.shards, self.prefill, self.decode) < 1:
            raise InputError("layout: shards, prefill and decode must be at least 1")
        if self.balancer not in BALANCERS or self.engine not in ENGINES:
            raise InputError(
                f"layout: balancer {self.balancer!r} and engine {self.engine!r}; allowed are "
                f"{', '.join(BALANCERS)} and {', '.join(ENGINES)}"
            )


@dataclass(frozen=True, slots=True)
class ShardedResult:
    """What came of it; simulated, `router_us` excepted.

    Attributes:
        ttft_attainment: percent of the requests.
        ttft_p50_s, ttft_p99_s: seconds.
        rejected: requests.
        cached_share: percent of the prompt tokens found in prefix caches.
        most_waiting: requests in one dispatcher's queue at most.
        router_us: CPU time of the dispatchers per request on this machine, microseconds.
    """

    ttft_attainment: float
    ttft_p50_s: float
    ttft_p99_s: float
    rejected: int
    cached_share: float
    most_waiting: int
    router_us: float


class RoutedDecodeMemory:
    """KV of one decode instance, given in order of arrival or of deadline."""

    def __init__(self, tokens: float) -> None:
        self._free = tokens
        self._waiting: list[tuple[float, int, int]] = []

    def ask(self, request: int, rank: float, tokens: int) -> list[int]:
        """Queue a request; those that have got their memory now."""
        heapq.heappush(self._waiting, (rank, request, tokens))
        return self.give(0)

    def give(self, tokens: int) -> list[int]:
        """Take `tokens` back; those that have got their memory now."""
        self._free += tokens
        granted = []
        while self._waiting and self._waiting[0][2] <= self._free:
            _, request, needed = heapq.heappop(self._waiting)
            self._free -= needed
            granted.append(request)
        return granted


class _Shard:
    def __init__(
        self, layout: ShardLayout, profile: Profile, done: list[int], total: list[int]
    ) -> None:
        self.dispatcher = Dispatcher(layout.params)
        self.live = 0
        self.wake_s = float("inf")
        limits = profile.limits
        self.prefill: dict[str, PrefillServer] = {}
        self.caches: dict[str, PrefixIndex] = {}
        self.decode: dict[str, RoutedDecodeMemory] = {}
        kairos = layout.engine == "urgency"
        for i in range(layout.prefill):
            queue: PrefillQueue = (
                UrgencyQueue(
                    profile.prefill, limits.chunk_tokens, UrgencyParams(post_prefill_s=0.05)
                )
                if kairos
                else RankedQueue(profile.prefill, limits.chunk_tokens, "fcfs")
            )
            self.prefill[f"p{i}"] = PrefillServer(
                queue, profile.prefill, limits, True, _exact, done, total, _ignore
            )
            self.caches[f"p{i}"] = PrefixIndex(limits.kv_tokens // BLOCK_TOKENS)
            self.dispatcher.add_instance(f"p{i}", Role.PREFILL, profile, preemptive=kairos)
        for i in range(layout.decode):
            self.decode[f"d{i}"] = RoutedDecodeMemory(0.97 * limits.kv_tokens)
            self.dispatcher.add_instance(f"d{i}", Role.DECODE, profile)


class ShardedSimulation:
    """One run; deterministic but for `ShardedResult.router_us`.

    Args:
        requests: in order of arrival, seconds from 0.
        slos: theirs.
    """

    def __init__(
        self,
        requests: Sequence[TraceRequest],
        slos: Sequence[Slo],
        layout: ShardLayout,
        profile: Profile,
    ) -> None:
        self._requests = requests
        self._slos = slos
        self._layout = layout
        self._profile = profile
        self._done = [0] * len(requests)
        total = [r.input_tokens for r in requests]
        self._shards = [_Shard(layout, profile, self._done, total) for _ in range(layout.shards)]
        self._shard_of = [0] * len(requests)
        self._sent: dict[int, Assignment] = {}
        self._ttft = np.full(len(requests), np.inf)
        self._events: list[tuple[float, int, int, int, str]] = []
        self._sequence = 0
        self._random = random.Random(layout.seed)
        self._cached = 0
        self._most_waiting = 0
        self._router_s = 0.0

    def run(self) -> ShardedResult:
        for i, request in enumerate(self._requests):
            self._push(request.arrival_s, ARRIVED, i)
        while self._events:
            now, _, kind, what, key = heapq.heappop(self._events)
            if kind == ARRIVED:
                self._arrived(what, now)
            elif kind == STARTED:
                self._started(what, now)
            elif kind == PREFILLED:
                self._prefilled(self._shards[what], what, key, now)
            elif kind == FINISHED:
                self._finished(what, now)
            elif self._shards[what].wake_s == now:
                self._shards[what].wake_s = float("inf")
                self._dispatch(what, now)
        ttft = self._ttft
        served = ttft[np.isfinite(ttft)]
        objective = np.array([slo.ttft_s for slo in self._slos])
        tokens = sum(r.input_tokens for r in self._requests)
        return ShardedResult(
            ttft_attainment=100.0 * float(np.mean(ttft <= objective)),
            ttft_p50_s=float(np.quantile(served, 0.5)),
            ttft_p99_s=float(np.quantile(served, 0.99)),
            rejected=len(ttft) - len(served),
            cached_share=100.0 * self._cached / tokens,
            most_waiting=self._most_waiting,
            router_us=1e6 * self._router_s / len(ttft),
        )

    def _arrived(self, i: int, now: float) -> None:
        shards = range(len(self._shards))
        if self._layout.balancer == "least":
            c = min(shards, key=lambda c: (self._shards[c].live, c))
        else:
            c = self._random.randrange(len(self._shards))
        self._shard_of[i] = c
        request = self._requests[i]
        work = RequestDemand(
            id=i,
            tenant="",
            slo=self._slos[i],
            arrival_s=now,
            input_tokens=request.input_tokens,
            max_output_tokens=4 * request.output_tokens,
            blocks=request.hash_ids,
            block_tokens=BLOCK_TOKENS,
        )
        begun = time.thread_time()
        verdict = self._shards[c].dispatcher.offer(work, now)
        self._router_s += time.thread_time() - begun
        if verdict.queued:
            self._shards[c].live += 1
            self._dispatch(c, now)

    def _dispatch(self, c: int, now: float) -> None:
        shard = self._shards[c]
        begun = time.thread_time()
        assignments = shard.dispatcher.dispatch(now)
        wake = shard.dispatcher.next_wake_s(now)
        self._router_s += time.thread_time() - begun
        self._most_waiting = max(self._most_waiting, shard.dispatcher.waiting())
        for one in assignments:
            request = self._requests[one.id]
            self._sent[one.id] = one
            kairos = self._layout.engine == "urgency"
            rank = request.arrival_s + (self._slos[one.id].ttft_s if kairos else 0.0)
            memory = shard.decode[one.decode]
            for granted in memory.ask(one.id, rank, self._kv(one.id)):
                self._push(now + self._layout.handover_s, STARTED, granted)
        if wake is not None and wake < shard.wake_s:
            shard.wake_s = wake
            self._push(wake, WOKEN, c)

    def _started(self, i: int, now: float) -> None:
        c, one, request = self._shard_of[i], self._sent[i], self._requests[i]
        shard = self._shards[c]
        hit = shard.caches[one.prefill].match(request.hash_ids) * BLOCK_TOKENS
        self._done[i] = min(hit, request.input_tokens - 1)
        self._cached += self._done[i]
        # A plain engine counts from when it got the request.
        since = request.arrival_s if self._layout.engine == "urgency" else now
        due = since + self._slos[i].ttft_s
        server = shard.prefill[one.prefill]
        server.add(PrefillJob(i, since, due, request.input_tokens, self._done[i]))
        if server.idle:
            self._launch(c, one.prefill, now)

    def _launch(self, c: int, key: str, now: float) -> None:
        end = self._shards[c].prefill[key].start(now)
        if end is not None:
            self._push(end, PREFILLED, c, key)

    def _prefilled(self, shard: _Shard, c: int, key: str, now: float) -> None:
        for i in shard.prefill[key].finish():
            request = self._requests[i]
            shard.caches[key].insert(request.hash_ids)
            first = now + self._profile.kv.transfer_s(request.input_tokens)
            self._ttft[i] = first - request.arrival_s
            last = first + (request.output_tokens - 1) * self._layout.step_s
            self._push(last, FINISHED, i)
            begun = time.thread_time()
            shard.dispatcher.prefill_done(i, now)
            self._router_s += time.thread_time() - begun
        self._launch(c, key, now)
        self._dispatch(c, now)

    def _finished(self, i: int, now: float) -> None:
        c, one = self._shard_of[i], self._sent.pop(i)
        shard = self._shards[c]
        shard.live -= 1
        for granted in shard.decode[one.decode].give(self._kv(i)):
            self._push(now + self._layout.handover_s, STARTED, granted)
        begun = time.thread_time()
        shard.dispatcher.finished(i, now, self._requests[i].output_tokens)
        self._router_s += time.thread_time() - begun
        self._dispatch(c, now)

    def _kv(self, i: int) -> int:
        return self._requests[i].input_tokens + self._requests[i].output_tokens

    def _push(self, at: float, kind: int, what: int, key: str = "") -> None:
        self._sequence += 1
        heapq.heappush(self._events, (at, self._sequence, kind, what, key))


def poisson(
    requests: Sequence[TraceRequest],
    count: int,
    load: float,
    instances: int,
    profile: Profile,
    seed: int,
) -> list[TraceRequest]:
    """`count` requests drawn from a trace with replacement, arriving at random at a prefill load
    per instance. Prefixes are not shared."""
    draw = random.Random(seed)
    drawn = draw.choices(requests, k=count)
    chunk = profile.limits.chunk_tokens
    work = [profile.prefill.remaining_s(0, r.input_tokens, chunk) for r in drawn]
    rate = load * instances * count / sum(work)
    now, made = 0.0, []
    for request in drawn:
        now += draw.expovariate(rate)
        made.append(TraceRequest(now, request.input_tokens, request.output_tokens))
    return made


def _exact() -> float:
    return 1.0


def _ignore(request: int, by: PrefillServer) -> None:
    """Only one instance is offered a request."""
