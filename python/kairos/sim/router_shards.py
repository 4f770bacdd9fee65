"""The router's scheduling in closed loop: dispatchers in front of simulated instances.

A shard is a dispatcher with instances of its own. A balancer without knowledge of the requests
chooses the shard of each arrival.

Prefill instances are those of the simulator. A decode instance is reduced to its effect on a
router: memory that a request holds from its grant to its last token, and one token per `step_s`. An
instance grants memory in its own order and starts no prefill without it.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numpy as np

from kairos.latency import Profile
from kairos.policy.jobs import PrefillJob, PrefillQueue
from kairos.policy.urgency import UrgencyParams, UrgencyQueue
from kairos.router.placement.prefix_index import PrefixIndex
from kairos.router.queue.dispatcher import Dispatcher
from kairos.router.queue.request import Assignment, RequestDemand
from kairos.router.workers.endpoint import Role
from kairos.sim.baselines.prefill import RankedQueue
from kairos.sim.event_queue import EventQueue
from kairos.sim.prefill_server import (
    PrefillEngine,
    PrefillServer,
    PromptProgress,
    SimulatedBatch,
)
from kairos.sim.result import ShardedResult
from kairos.sim.routed_memory import RoutedDecodeMemory
from kairos.sim.shard_layout import ShardLayout
from kairos.slo import Slo
from kairos.workload.trace import BLOCK_TOKENS, TraceRequest

_KV_SHARE = 0.97
_POST_PREFILL_S = 0.05
# Requests declare this many times their true output length.
_MAX_OUTPUT_FACTOR = 4

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class _Arrived:
    """A request reaches the balancer."""

    request: int


@dataclass(frozen=True, slots=True)
class _HandoverEnded:
    """A dispatched request with decode memory reaches its prefill instance."""

    request: int


@dataclass(frozen=True, slots=True)
class _BatchEnded:
    """A prefill instance has finished a batch."""

    shard: int
    server: str
    batch: SimulatedBatch


@dataclass(frozen=True, slots=True)
class _LastTokenMade:
    """A request has all its tokens."""

    request: int


@dataclass(frozen=True, slots=True)
class _DispatcherWoken:
    """The dispatcher of a shard asked to be called now."""

    shard: int


_Event = _Arrived | _HandoverEnded | _BatchEnded | _LastTokenMade | _DispatcherWoken


class _Shard:
    """A dispatcher and its instances."""

    def __init__(self, layout: ShardLayout, profile: Profile, prompts: PromptProgress) -> None:
        self.dispatcher = Dispatcher(layout.params)
        self.active_requests = 0
        self.wake_s = float("inf")
        self.prefill: dict[str, PrefillServer] = {}
        self.caches: dict[str, PrefixIndex] = {}
        self.decode: dict[str, RoutedDecodeMemory] = {}
        limits = profile.limits
        engine = PrefillEngine(profile.prefill, limits.chunk_tokens, lookahead=False)
        for name in (f"p{i}" for i in range(layout.prefill)):
            self.prefill[name] = PrefillServer(_queue(layout, profile), engine, prompts)
            self.caches[name] = PrefixIndex(limits.kv_tokens // BLOCK_TOKENS)
            preemptive = layout.engine == "urgency"
            self.dispatcher.add_worker(name, Role.PREFILL, profile, preemptive=preemptive)
        for name in (f"d{i}" for i in range(layout.decode)):
            self.decode[name] = RoutedDecodeMemory(_KV_SHARE * limits.kv_tokens)
            self.dispatcher.add_worker(name, Role.DECODE, profile)


def _queue(layout: ShardLayout, profile: Profile) -> PrefillQueue:
    chunk_tokens = profile.limits.chunk_tokens
    if layout.engine == "urgency":
        params = UrgencyParams(post_prefill_s=_POST_PREFILL_S)
        return UrgencyQueue(profile.prefill, chunk_tokens, params)
    return RankedQueue(profile.prefill, chunk_tokens, "fcfs")


class ShardedSimulation:
    """One run; deterministic except for `ShardedResult.router_us`.

    Args:
        requests: in order of arrival, seconds from 0.
        slos: SLO of each request.
        layout: shards and instances.
        profile: latencies and limits of every instance.
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
        self._engine_knows_slos = layout.engine == "urgency"
        self._prompts = PromptProgress([0] * len(requests), [r.input_tokens for r in requests])
        self._shards = [_Shard(layout, profile, self._prompts) for _ in range(layout.shards)]
        self._shard_of = [0] * len(requests)
        self._dispatched: dict[int, Assignment] = {}
        self._ttft = np.full(len(requests), np.inf)
        self._events: EventQueue[_Event] = EventQueue()
        self._random = random.Random(layout.seed)
        self._cached_tokens = 0
        self._most_waiting = 0
        self._router_s = 0.0

    def run(self) -> ShardedResult:
        """Serve all requests."""
        for i, request in enumerate(self._requests):
            self._events.add(request.arrival_s, _Arrived(i))
        while self._events:
            now_s, event = self._events.pop()
            self._handle(event, now_s)
        return self._result()

    def _handle(self, event: _Event, now_s: float) -> None:
        if isinstance(event, _Arrived):
            self._arrive(event.request, now_s)
        elif isinstance(event, _HandoverEnded):
            self._queue_prefill(event.request, now_s)
        elif isinstance(event, _BatchEnded):
            self._end_batch(event, now_s)
        elif isinstance(event, _LastTokenMade):
            self._finish(event.request, now_s)
        elif self._shards[event.shard].wake_s == now_s:
            self._shards[event.shard].wake_s = float("inf")
            self._dispatch(event.shard, now_s)

    def _result(self) -> ShardedResult:
        ttft = self._ttft
        served = ttft[np.isfinite(ttft)]
        objective = np.array([slo.ttft_s for slo in self._slos])
        return ShardedResult(
            ttft_attainment=100.0 * float(np.mean(ttft <= objective)),
            ttft_p50_s=float(np.quantile(served, 0.5)),
            ttft_p99_s=float(np.quantile(served, 0.99)),
            rejected=len(ttft) - len(served),
            cached_share=100.0 * self._cached_tokens / sum(self._prompts.total),
            most_waiting=self._most_waiting,
            router_us=1e6 * self._router_s / len(ttft),
        )

    def _arrive(self, i: int, now_s: float) -> None:
        at = self._shard_of[i] = self._balance()
        shard, request = self._shards[at], self._requests[i]
        demand = RequestDemand(
            id=i,
            tenant="",
            slo=self._slos[i],
            arrival_s=now_s,
            input_tokens=request.input_tokens,
            max_output_tokens=_MAX_OUTPUT_FACTOR * request.output_tokens,
            blocks=request.hash_ids,
            block_tokens=BLOCK_TOKENS,
        )
        if self._timed(shard.dispatcher.offer, demand, now_s).queued:
            shard.active_requests += 1
            self._dispatch(at, now_s)

    def _balance(self) -> int:
        """Index of the shard for the next arrival."""
        if self._layout.balancer == "random":
            return self._random.randrange(len(self._shards))
        active = [shard.active_requests for shard in self._shards]
        return active.index(min(active))

    def _dispatch(self, at: int, now_s: float) -> None:
        shard = self._shards[at]
        assignments = self._timed(shard.dispatcher.dispatch, now_s)
        wake_s = self._timed(shard.dispatcher.next_wake_s, now_s)
        self._most_waiting = max(self._most_waiting, shard.dispatcher.waiting())
        for assignment in assignments:
            i = assignment.id
            self._dispatched[i] = assignment
            ttft_s = self._slos[i].ttft_s if self._engine_knows_slos else 0.0
            rank = self._requests[i].arrival_s + ttft_s
            memory = shard.decode[assignment.decode]
            self._hand_over(memory.ask(i, rank, self._kv_tokens(i)), now_s)
        if wake_s is not None and wake_s < shard.wake_s:
            shard.wake_s = wake_s
            self._events.add(wake_s, _DispatcherWoken(at))

    def _hand_over(self, granted: Sequence[int], now_s: float) -> None:
        for i in granted:
            self._events.add(now_s + self._layout.handover_s, _HandoverEnded(i))

    def _queue_prefill(self, i: int, now_s: float) -> None:
        at, request, name = self._shard_of[i], self._requests[i], self._dispatched[i].prefill
        shard = self._shards[at]
        hit_tokens = shard.caches[name].match(request.hash_ids) * BLOCK_TOKENS
        cached_tokens = min(hit_tokens, request.input_tokens - 1)
        self._prompts.done[i] = cached_tokens
        self._cached_tokens += cached_tokens
        # SGLang counts from the time at which its server got the request.
        arrival_s = request.arrival_s if self._engine_knows_slos else now_s
        deadline_s = arrival_s + self._slos[i].ttft_s
        server = shard.prefill[name]
        server.add(PrefillJob(i, arrival_s, deadline_s, request.input_tokens, cached_tokens))
        if server.idle:
            self._start_batch(at, name, now_s)

    def _start_batch(self, at: int, name: str, now_s: float) -> None:
        batch = self._shards[at].prefill[name].start(now_s)
        if batch is not None:
            self._events.add(now_s + batch.true_s, _BatchEnded(at, name, batch))

    def _end_batch(self, event: _BatchEnded, now_s: float) -> None:
        shard = self._shards[event.shard]
        shard.prefill[event.server].finish()
        for i in event.batch.completed:
            request = self._requests[i]
            shard.caches[event.server].insert(request.hash_ids)
            first_s = now_s + self._profile.kv.transfer_s(request.input_tokens)
            self._ttft[i] = first_s - request.arrival_s
            last_s = first_s + (request.output_tokens - 1) * self._layout.step_s
            self._events.add(last_s, _LastTokenMade(i))
            self._timed(shard.dispatcher.prefill_done, i, now_s)
        self._start_batch(event.shard, event.server, now_s)
        self._dispatch(event.shard, now_s)

    def _finish(self, i: int, now_s: float) -> None:
        at, assignment = self._shard_of[i], self._dispatched.pop(i)
        shard = self._shards[at]
        shard.active_requests -= 1
        self._hand_over(shard.decode[assignment.decode].give_back(self._kv_tokens(i)), now_s)
        self._timed(shard.dispatcher.finished, i, now_s, self._requests[i].output_tokens)
        self._dispatch(at, now_s)

    def _kv_tokens(self, i: int) -> int:
        return self._requests[i].input_tokens + self._requests[i].output_tokens

    def _timed(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the dispatcher and count the CPU time."""
        begun_s = time.thread_time()
        result = call(*args, **kwargs)
        self._router_s += time.thread_time() - begun_s
        return result
