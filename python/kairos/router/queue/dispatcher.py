"""The router's one queue: the order of requests, their pairs, and the moments of their dispatch."""

import math
from typing import Any

import msgspec
import numpy as np

from kairos.errors import InputError
from kairos.latency import Profile
from kairos.policy.admission import AdmissionDecision, decide
from kairos.router.placement.decode_target import DecodeTarget
from kairos.router.placement.load import STALE_S, WorkerLoad
from kairos.router.placement.placement import (
    Candidate,
    Placement,
    Wait,
    cached_tokens,
    choose_placement,
    in_turn,
    untried,
)
from kairos.router.placement.prefill_target import PrefillTarget
from kairos.router.queue import forecast
from kairos.router.queue.admission import AdmissionResult, QueueLimits, Reason, weakened
from kairos.router.queue.fair_queueing import FairQueueing
from kairos.router.queue.history import Arrivals, OutputLengths
from kairos.router.queue.params import Binding, DispatchParams
from kairos.router.queue.request import Assignment, QueuedRequest, RequestDemand
from kairos.router.queue.request_queue import DispatchReason, WaitingQueue
from kairos.router.queue.starvation import Starvation
from kairos.router.workers.endpoint import Role

TAIL_S = 0.05
"""From the end of prefill to the client's first token, beyond the link's fixed cost, seconds."""
POLL_S = 0.1
"""While requests wait, `dispatch` is due at least this often: predictions may be wrong."""
MAX_BYPASSED = 32
"""Requests without room that one decision passes over."""

_NONE_HELD = np.empty((0, 2))


class Dispatcher:
    """Queues requests and sends each to a pair.

    All of it runs on one thread without waiting. Times are monotonic seconds and never go back.
    Events of an unknown id are ignored, so that late events of ended requests do no harm.

    A request is queued (`offer`, `requeue`), then dispatched (`dispatch`), then gone (`finished`,
    `cancelled`). The owner calls `dispatch` after every event and at `next_wake_s`.

    The first construction in a process compiles or loads the kernels (seconds, once per machine).
    """

    def __init__(self, params: DispatchParams | None = None) -> None:
        self.params = params or DispatchParams()
        self._prefill: dict[str, PrefillTarget] = {}
        self._decode: dict[str, DecodeTarget] = {}
        self._queue = WaitingQueue()
        self._limits = QueueLimits()
        self._shares = FairQueueing()
        self._arrivals = Arrivals()
        self._sent: dict[int, tuple[QueuedRequest, Assignment]] = {}
        self._outputs = OutputLengths()
        self._starvation = Starvation(self.params)
        self._admission = self.params.admission
        self._tail_s = TAIL_S
        self._turn = 0

    def configure(self, params: DispatchParams) -> None:
        """Apply new bounds and shares; waiting requests stay."""
        self.params = params
        self._admission = params.admission
        self._starvation.configure(params)

    def add_worker(
        self,
        key: str,
        role: Role,
        profile: Profile | None = None,
        *,
        preemptive: bool = False,
        kv_tokens: int | None = None,
        max_running: int | None = None,
    ) -> None:
        """Add a worker, which is available at once.

        Args:
            key: `host:port`; names it in assignments.
            profile: latency model; None: speed is learned, and requests are dispatched early until
                it is.
            preemptive: whether the worker orders its own prefill work by urgency.
            kv_tokens: None: the profile's or the reports'; without these KV is not limited here.
            max_running: requests in its batch at most; None as for `kv_tokens`.

        Raises:
            InputError: the key is known already, or a limit is not positive.
        """
        if self.knows(key):
            raise InputError(f"worker {key} is known already")
        for name, limit in (("kv_tokens", kv_tokens), ("max_running", max_running)):
            if limit is not None and limit < 1:
                raise InputError(f"worker {key}: {name} = {limit}; must be at least 1")
        if role is Role.DECODE:
            self._decode[key] = DecodeTarget(key, profile, kv_tokens, max_running)
            return
        self._prefill[key] = PrefillTarget(key, profile, preemptive, kv_tokens)
        if profile is not None:
            self._tail_s = TAIL_S + profile.kv.fixed_s

    def knows(self, key: str) -> bool:
        """Whether a worker was added and not removed."""
        return key in self._prefill or key in self._decode

    def remove_worker(self, key: str) -> list[int]:
        """Forget a worker; KeyError if it is not known.

        Return the ids of the requests that were dispatched to it (either leg) and have not ended.
        The owner ends or requeues them.
        """
        del (self._prefill if key in self._prefill else self._decode)[key]
        self._starvation.closed(key)
        return [id for id, (_, at) in self._sent.items() if key in (at.prefill, at.decode)]

    def set_available(self, key: str, available: bool) -> None:
        """Open or close a worker for new requests; KeyError if it is not known."""
        worker = self._prefill[key] if key in self._prefill else self._decode[key]
        worker.available = available
        if not available:
            self._starvation.closed(key)

    def forget_cache(self, key: str) -> None:
        """Note that a worker was restarted or its prefix cache flushed."""
        if (worker := self._prefill.get(key)) is not None:
            worker.cache.clear()

    def has_pair(self) -> bool:
        """Whether a prefill and a decode worker are available."""
        prefill, decode = self._prefill.values(), self._decode.values()
        return any(p.available for p in prefill) and any(d.available for d in decode)

    def loads(self, key: str, load: WorkerLoad, now_s: float) -> None:
        """Take a report of a worker over; a stale one, or one of an unknown key, is ignored."""
        if now_s - load.measured_s > STALE_S:
            return
        if key in self._prefill:
            self._prefill[key].report(load, now_s)
        elif key in self._decode:
            self._decode[key].report(load)

    def offer(self, work: RequestDemand, now_s: float) -> AdmissionResult:
        """Queue a request, or reject it.

        Raises:
            InputError: its id is known already, or a number in it makes no sense.
        """
        if work.id in self._queue.entries or work.id in self._sent:
            raise InputError(f"request {work.id} is known already")
        work.check()
        if math.isinf(work.slo.ttft_ms):
            work = msgspec.structs.replace(work, best_effort=True)
        prefill = self._prefill.values()
        refused = self._limits.refuses(work, len(prefill), self._decode.values(), self.params)
        if refused is not None:
            reason, detail = refused
            after_s = 0.0
            if reason is not Reason.TOO_LARGE:
                after_s = forecast.retry_s(prefill, self._queue)
            return AdmissionResult(AdmissionDecision.REJECT, work.slo, reason, detail, after_s)
        entry = QueuedRequest(work)
        entry.work_s = min([p.work_s(cached_tokens(entry, p), work.input_tokens) for p in prefill])
        known = [p for p in prefill if p.available and p.speed.known]
        ttft_s = forecast.ttft_s(entry, known, self._queue, self._tail_s, now_s)
        left_s = max(work.deadline_s - now_s, 0.0)
        decision = decide(ttft_s, left_s, self._admission)
        if work.best_effort or decision is AdmissionDecision.ADMIT:
            if known and not work.best_effort:
                base_s = forecast.base_latency_s(known, self._tail_s)
                patience_s = left_s - base_s - entry.work_s * forecast.mean_factor(known)
                if patience_s > 0.0:
                    self._arrivals.add(patience_s, now_s)
            self._enqueue(entry)
            return AdmissionResult(AdmissionDecision.ADMIT, work.slo, predicted_ttft_s=ttft_s)
        detail = f"the first token is expected in {ttft_s:.1f} s and due in {left_s:.1f} s"
        after_s = 0.0
        if decision is AdmissionDecision.REJECT:
            after_s = min(max(ttft_s - left_s, forecast.RETRY_S[0]), forecast.RETRY_S[1])
        else:
            entry.work = weakened(work, decision, ttft_s, now_s)
            self._enqueue(entry)
        return AdmissionResult(decision, entry.work.slo, Reason.INFEASIBLE, detail, after_s, ttft_s)

    def dispatch(self, now_s: float) -> list[Assignment]:
        """Return the requests to send now, most urgent first; they count as sent from now on."""
        prefill = [p for p in self._prefill.values() if p.available]
        decode = [d for d in self._decode.values() if d.available]
        if not len(self._queue) or not prefill or not decode:
            return []
        if self.params.binding is not Binding.URGENCY:
            return self._dispatch_in_turn(prefill, decode, now_s)
        self._classify(prefill, now_s)
        assignments: list[Assignment] = []
        barred: set[str] = set()  # classes in which a tenant behind its share waits for prefill
        too_large = math.inf  # KV that no worker has now
        too_long = math.inf  # prefill time that would block the last clear worker
        passed = 0
        while passed < MAX_BYPASSED and len(self._queue):
            entry, reason = self._next(now_s)
            if entry is None:
                break
            work, starved = entry.work, reason is DispatchReason.STARVATION
            output_tokens = self._outputs.expected(work)
            kv_tokens = work.input_tokens + int(output_tokens)
            blocks = entry.work_s >= too_long and not starved
            if not (work.slo.slo_class in barred or kv_tokens >= too_large or blocks):
                candidate = Candidate(
                    entry,
                    self._queue.feasible(entry),
                    output_tokens,
                    None if starved else self._arrivals,
                    self._tail_s,
                    self._starvation.reservation,
                )
                able = untried(prefill, entry), untried(decode, entry)
                pair = choose_placement(candidate, *able, now_s)
                if isinstance(pair, Placement):
                    assignments.append(self._send(entry, pair, now_s))
                    continue
                if pair is Wait.BUSY and reason is DispatchReason.URGENCY:
                    break  # the next one is less urgent
                if pair is Wait.BUSY and reason is DispatchReason.SHARE:
                    barred.add(work.slo.slo_class)
                elif pair is Wait.HEAD_OF_LINE:
                    too_long = min(too_long, entry.work_s)
                elif pair is Wait.MEMORY:
                    too_large = min(too_large, kv_tokens)
                    self._starvation.reserve(work, decode, now_s)
            self._queue.pass_over(entry)
            passed += 1
        return assignments

    def next_wake_s(self, now_s: float) -> float | None:
        """Return when `dispatch` is due if nothing happens before; None: only after an event."""
        if not len(self._queue) or not self.has_pair():
            return None
        dry = [p.dry_at_s(now_s) for p in self._prefill.values() if p.available]
        wake_s = min([at for at in dry if at > now_s] + [now_s + POLL_S])
        return max(wake_s, now_s + 1e-3)

    def prefill_done(self, id: int, now_s: float) -> None:
        """Note that a prompt is computed: its prefill leg answered, or its first token came."""
        sent = self._sent.get(id)
        if sent is not None and sent[1].prefill in self._prefill:
            self._prefill[sent[1].prefill].done(id, now_s)

    def finished(self, id: int, now_s: float, output_tokens: int | None = None) -> None:
        """Note that a request is complete, with the tokens of all its sequences where known."""
        self.prefill_done(id, now_s)
        entry = self._release(id, now_s)
        if entry is not None and output_tokens is not None and output_tokens > 0:
            self._outputs.observe(entry.work, output_tokens)

    def cancelled(self, id: int, now_s: float) -> None:
        """Note that a request was withdrawn, failed or expired, once its legs have ended."""
        if id in self._queue.entries:
            self._dequeue(id)
        self._release(id, now_s)

    def requeue(self, id: int, now_s: float) -> bool:
        """Queue a dispatched request again, whatever the bounds; False if it is not dispatched.

        It goes to another prefill and to another decode worker, as long as there is one that it has
        not tried.
        """
        if id not in self._sent:
            return False
        entry, at = self._sent[id]
        self._release(id, now_s)
        entry.tried |= {at.prefill, at.decode}
        self._enqueue(entry)
        self._shares.charge(entry.flow, -entry.charged_s, self.params.tenant_weights)
        return True

    def waiting(self) -> int:
        """Return the number of queued requests."""
        return len(self._queue)

    def snapshot(self, now_s: float) -> dict[str, Any]:
        """Return plain values of the queue and, by key, of the workers."""
        workers: dict[str, dict[str, Any]] = {}
        for key, prefill in self._prefill.items():
            workers[key] = {"role": "prefill", **prefill.snapshot(now_s)}
        for key, decode in self._decode.items():
            workers[key] = {"role": "decode", **decode.snapshot(now_s)}
        return {
            "queue": {
                "requests": len(self._queue),
                "sequences": self._limits.total.sequences,
                "bytes": self._limits.total.bytes,
                "work_s": self._queue.work_s() * forecast.mean_factor(self._prefill.values()),
            },
            "dispatched": len(self._sent),
            "workers": workers,
        }

    def _classify(self, prefill: list[PrefillTarget], now_s: float) -> None:
        busy = [p.committed_work(now_s) for p in prefill if not p.idle(now_s)]
        held = np.concatenate(busy) if busy else _NONE_HELD
        base_s = forecast.base_latency_s(prefill, self._tail_s)
        self._queue.classify(now_s, held, len(prefill), forecast.mean_factor(prefill), base_s)

    def _next(self, now_s: float) -> tuple[QueuedRequest | None, DispatchReason]:
        """Return the next request, and why it is the next."""
        if self._starvation.reservation is not None:
            held = self._queue.entries[self._starvation.reservation[0]]
            if not self._queue.passed_over(held):
                return held, DispatchReason.RESERVATION
        if self._starvation.credit.available:
            starved = self._queue.oldest_starved(now_s, self.params.starve_after)
            if starved is not None:
                return starved, DispatchReason.STARVATION
        entry = self._queue.pick(now_s)
        if entry is not None:
            behind = self._shares.behind(entry.flow, self.params.fair_slack_s)
            other = self._queue.pick(now_s, behind) if behind >= 0 else None
            if other is not None:
                return other, DispatchReason.SHARE
        return entry, DispatchReason.URGENCY

    def _dispatch_in_turn(
        self, prefill: list[PrefillTarget], decode: list[DecodeTarget], now_s: float
    ) -> list[Assignment]:
        assignments = []
        for entry in self._queue.in_order_of_arrival():
            able = untried(prefill, entry), untried(decode, entry)
            pair = in_turn(entry, self.params.binding.value, self._turn, *able, now_s)
            assignments.append(self._send(entry, pair, now_s))
            self._turn += 1
        return assignments

    def _send(self, entry: QueuedRequest, pair: Placement, now_s: float) -> Assignment:
        work = entry.work
        entry.charged_s = pair.work_s * pair.prefill.speed.factor
        self._starvation.served(work, entry.charged_s, now_s)
        self._shares.charge(entry.flow, entry.charged_s, self.params.tenant_weights)
        self._dequeue(work.id)
        pair.prefill.send(work.id, work.deadline_s, pair.work_s, work.input_tokens, now_s)
        pair.prefill.cache.insert(work.blocks)
        output_tokens = self._outputs.expected(work)
        context = work.input_tokens + output_tokens / 2.0
        tokens = work.input_tokens + int(output_tokens)
        pair.decode.send(work.id, tokens, context, work.sequences, now_s)
        assignment = Assignment(work.id, pair.prefill.key, pair.decode.key, pair.cached)
        self._sent[work.id] = entry, assignment
        return assignment

    def _enqueue(self, entry: QueuedRequest) -> None:
        work = entry.work
        entry.flow = self._shares.enter(work.slo.slo_class, work.tenant)
        self._queue.add(entry)
        self._limits.add(work)

    def _dequeue(self, id: int) -> None:
        entry = self._queue.remove(id)
        self._limits.remove(entry.work)
        self._shares.leave(entry.flow)
        self._starvation.left(id)

    def _release(self, id: int, now_s: float) -> QueuedRequest | None:
        """Free what a dispatched request holds."""
        if id not in self._sent:
            return None
        entry, at = self._sent.pop(id)
        if at.prefill in self._prefill:
            self._prefill[at.prefill].drop(id, now_s)
        if at.decode in self._decode:
            self._decode[at.decode].end(id)
        return entry
