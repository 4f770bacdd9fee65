"""The router's one queue: which request goes next, to which pair, and when."""

import math
from dataclasses import replace
from enum import Enum
from typing import Any

import numpy as np

from kairos.errors import InputError
from kairos.latency import Profile
from kairos.policy.admission import AdmissionDecision, decide
from kairos.router.placement.decode_target import DecodeTarget
from kairos.router.placement.load import WorkerLoad
from kairos.router.placement.placement import (
    Candidate,
    Conditions,
    Placement,
    Wait,
    cached_tokens,
    choose_placement,
    in_turn,
    untried,
)
from kairos.router.placement.prefill_target import PrefillTarget
from kairos.router.queue.admission import AdmissionResult, Reason
from kairos.router.queue.arrivals import Arrivals
from kairos.router.queue.demand import Assignment, RequestDemand
from kairos.router.queue.dispatched import DispatchedRequest
from kairos.router.queue.expected_outputs import Outputs
from kairos.router.queue.fair_queueing import FairQueueing
from kairos.router.queue.params import Binding, DispatchParams
from kairos.router.queue.queue_limits import QueueLimits
from kairos.router.queue.request_queue import QueuedRequest, WaitingQueue
from kairos.router.queue.starvation import Starvation
from kairos.router.workers.endpoint import Role
from kairos.slo import TTFT_RANGE_MS

TAIL_S = 0.05
"""From the end of prefill to the client's first token, beyond the link's fixed cost, seconds."""
POLL_S = 0.1
"""While requests wait, `dispatch` is due at least this often: predictions may be wrong."""
MAX_BYPASSED = 32
"""Requests that find no room and are passed over in one decision."""
RETRY_S = (1.0, 60.0)
"""Least and most seconds that a rejected client is asked to wait."""
DEGRADE_SPARE = 1.25
"""A degraded request gets this multiple of its predicted TTFT as its objective."""


class DispatchReason(Enum):
    """Why a request is the next one: it is the most urgent; a decode worker is reserved for it; its
    tenant is behind its share; or it has waited too long."""

    URGENCY = "urgency"
    RESERVATION = "reservation"
    SHARE = "share"
    STARVATION = "starvation"


class Dispatcher:
    """All of it runs on one thread; nothing in it waits. Times are monotonic seconds and must not
    go back. Every event of an id that is not known (any more) is ignored, so that late events of
    ended requests do no harm.

    A request is queued (`offer`, `requeue`), then dispatched (`dispatch`), then gone (`finished`,
    `cancelled`). The owner calls `dispatch` after every event and at `next_wake_s`. The same calls
    give the same decisions.

    Args:
        params: bounds and shares; `configure` changes them later.

    The first construction in a process compiles or loads the kernels (seconds, once per machine).
    """

    def __init__(self, params: DispatchParams | None = None) -> None:
        self.params = params or DispatchParams()
        self._prefill: dict[str, PrefillTarget] = {}
        self._decode: dict[str, DecodeTarget] = {}
        self._queue = WaitingQueue()
        self._bounds = QueueLimits()
        self._shares = FairQueueing()
        self._arrivals = Arrivals()
        self._sent: dict[int, DispatchedRequest] = {}
        self._outputs = Outputs()
        self._starvation = Starvation(self.params)
        self._epochs: dict[str, str] = {}
        self._tail_s = TAIL_S
        self._turn = 0

    def configure(self, params: DispatchParams) -> None:
        """Apply new bounds and shares; what waits already stays."""
        self.params = params
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
        """A new instance; it is available at once.

        Args:
            key: `host:port`; names it in assignments.
            profile: latency model; None: speed is learned from what is observed, requests are
                dispatched early until then.
            preemptive: it orders its own prefill work by urgency (Kairos engines), so an urgent
                request may be sent to it while it works on a long prompt.
            kv_tokens: KV capacity; None: the profile's, or what its reports say. Unknown
                everywhere: KV is not limited by the router.
            max_running: requests in its batch at most; None as for `kv_tokens`.

        Raises:
            InputError: the key is known already, or a limit is not positive.
        """
        if key in self._prefill or key in self._decode:
            raise InputError(f"instance {key} is known already")
        for name, limit in (("kv_tokens", kv_tokens), ("max_running", max_running)):
            if limit is not None and limit < 1:
                raise InputError(f"instance {key}: {name} = {limit}; must be at least 1")
        if role is Role.DECODE:
            self._decode[key] = DecodeTarget(key, profile, kv_tokens, max_running)
            return
        limit = self.params.block_limit
        self._prefill[key] = PrefillTarget(key, profile, preemptive, kv_tokens, limit)
        if profile is not None:
            self._tail_s = TAIL_S + profile.kv.fixed_s

    def remove_worker(self, key: str) -> list[int]:
        """Forget an instance; ids of the requests that were dispatched to it (either leg) and have
        not ended. The owner ends or requeues these. KeyError if it is not known."""
        if key in self._prefill:
            del self._prefill[key]
        else:
            del self._decode[key]
        self._epochs.pop(key, None)
        self._starvation.closed(key)
        return [id for id, sent in self._sent.items() if key in (sent.prefill, sent.decode)]

    def set_available(self, key: str, available: bool) -> None:
        """Nothing is dispatched to an instance that is not available; what it holds stays.
        KeyError if it is not known."""
        self._instance(key).available = available
        if not available:
            self._starvation.closed(key)

    def forget_cache(self, key: str) -> None:
        """The instance was restarted or its prefix cache flushed."""
        if key in self._prefill:
            self._prefill[key].cache.clear()

    def has_pair(self) -> bool:
        """Whether a prefill and a decode instance are available."""
        return any(p.available for p in self._prefill.values()) and any(
            d.available for d in self._decode.values()
        )

    def offer(self, work: RequestDemand, now_s: float) -> AdmissionResult:
        """Queue a request, or reject it.

        Raises:
            InputError: its id is known already, or a number in it makes no sense.
        """
        self._check(work)
        refused = self._refused(work)
        if refused is not None:
            reason, detail = refused
            never = reason is Reason.TOO_LARGE
            retry_s = 0.0 if never else self._retry_s()
            return AdmissionResult(AdmissionDecision.REJECT, work.slo, reason, detail, retry_s)
        entry = QueuedRequest(work, 0.0, -1)
        entry.work_s = min(
            instance.work_s(cached_tokens(entry, instance), work.input_tokens)
            for instance in self._prefill.values()
        )
        ttft_s = self._predicted_ttft_s(entry, now_s)
        left_s = max(work.deadline_s - now_s, 0.0)
        decision = decide(ttft_s, left_s, self.params.admission)
        if work.best_effort or decision is AdmissionDecision.ADMIT:
            self._expect(entry, left_s, now_s)
            self._enqueue(entry)
            return AdmissionResult(AdmissionDecision.ADMIT, work.slo, predicted_ttft_s=ttft_s)
        return self._infeasible(entry, decision, ttft_s, left_s, now_s)

    def dispatch(self, now_s: float) -> list[Assignment]:
        """Requests to send now, most urgent first; they count as sent when this returns."""
        prefill = [p for p in self._prefill.values() if p.available]
        decode = [d for d in self._decode.values() if d.available]
        if not len(self._queue) or not prefill or not decode:
            return []
        if self.params.binding is not Binding.URGENCY:
            return self._dispatch_in_turn(prefill, decode, now_s)
        self._classify(prefill, now_s)
        assignments: list[Assignment] = []
        barred: set[str] = set()  # classes in which a tenant that fell behind waits for prefill
        too_large = math.inf  # KV that no instance has now
        too_long = math.inf  # prefill time that would block the last clear instance
        passed = 0
        while passed < MAX_BYPASSED:
            entry, reason = self._next(now_s)
            if entry is None:
                break
            if (
                entry.work.slo.slo_class in barred
                or self._outputs.kv_tokens(entry.work) >= too_large
                or (entry.work_s >= too_long and reason is not DispatchReason.STARVATION)
            ):
                self._queue.pass_over(entry)
                passed += 1
                continue
            pair = choose_placement(
                Candidate(
                    entry,
                    self._queue.on_time(entry),
                    self._outputs.expected(entry.work),
                    None if reason is DispatchReason.STARVATION else self._arrivals,
                ),
                untried(prefill, entry),
                untried(decode, entry),
                Conditions(now_s, self._tail_s, self.params.stale_s, self._starvation.reservation),
            )
            if isinstance(pair, Placement):
                assignments.append(self._send(entry, pair, now_s))
                continue
            if pair is Wait.BUSY and reason is DispatchReason.URGENCY:
                break  # the next one is less urgent
            if pair is Wait.BUSY and reason is DispatchReason.SHARE:
                barred.add(entry.work.slo.slo_class)
            if pair is Wait.HEAD_OF_LINE:
                too_long = min(too_long, entry.work_s)
            if pair is Wait.MEMORY:
                too_large = min(too_large, self._outputs.kv_tokens(entry.work))
                self._starvation.reserve(entry.work, decode, now_s, self.params.stale_s)
            self._queue.pass_over(entry)
            passed += 1
        return assignments

    def next_wake_s(self, now_s: float) -> float | None:
        """When `dispatch` should be called again if nothing happens before; None: only events
        matter."""
        if not len(self._queue) or not self.has_pair():
            return None
        dry = [p.dry_at_s(now_s) for p in self._prefill.values() if p.available]
        wake_s = min([at for at in dry if at > now_s] + [now_s + POLL_S])
        return max(wake_s, now_s + 1e-3)

    def prefill_done(self, id: int, now_s: float) -> None:
        """The prefill leg answered: the prompt is computed."""
        sent = self._sent.get(id)
        if sent is not None and sent.prefill in self._prefill:
            self._prefill[sent.prefill].done(id, now_s)

    def first_token(self, id: int, now_s: float) -> None:
        """The decode leg sent its first token; implies `prefill_done`."""
        self.prefill_done(id, now_s)

    def finished(self, id: int, now_s: float, output_tokens: int | None = None) -> None:
        """The request ended normally. `output_tokens`: of all sequences, None where not known."""
        self.prefill_done(id, now_s)
        sent = self._release(id, now_s)
        if sent is not None and output_tokens is not None and output_tokens > 0:
            self._outputs.observe(sent.entry.work, output_tokens)

    def cancelled(self, id: int, now_s: float) -> None:
        """The request is gone: withdrawn, failed or expired. Call it when its legs have ended; what
        it holds counts as free then."""
        if id in self._queue.entries:
            self._dequeue(id)
        self._release(id, now_s)

    def requeue(self, id: int, now_s: float) -> bool:
        """A dispatched request waits again; bounds do not apply. It goes to another prefill and to
        another decode worker, as long as there is one that it has not tried.

        Returns:
            False if it is not dispatched.
        """
        sent = self._release(id, now_s)
        if sent is None:
            return False
        entry = sent.entry
        entry.tried |= {sent.prefill, sent.decode}
        self._enqueue(entry)
        self._shares.charge(entry.flow, -entry.charged_s, self.params.tenant_weights)
        return True

    def loads(self, key: str, load: WorkerLoad, now_s: float) -> None:
        """A report of an instance. One that is stale already, or of an unknown key, is ignored."""
        if now_s - load.measured_s > self.params.stale_s:
            return
        if load.epoch is not None:
            if self._epochs.setdefault(key, load.epoch) != load.epoch:
                self.forget_cache(key)
            self._epochs[key] = load.epoch
        if key in self._prefill:
            self._prefill[key].report(load, now_s, self.params.stale_s)
        elif key in self._decode:
            self._decode[key].report(load)

    def waiting(self) -> int:
        """Requests that are queued."""
        return len(self._queue)

    def snapshot(self, now_s: float) -> dict[str, Any]:
        """Plain values for /workers, /metrics and logs: queue and, by key, instances."""
        workers: dict[str, dict[str, Any]] = {}
        for key, prefill in self._prefill.items():
            workers[key] = {"role": Role.PREFILL.value, **prefill.snapshot(now_s)}
        for key, decode in self._decode.items():
            workers[key] = {
                "role": Role.DECODE.value,
                **decode.snapshot(now_s, self.params.stale_s),
            }
        return {
            "queue": {
                "requests": len(self._queue),
                "sequences": self._queue.sequences,
                "bytes": self._queue.bytes,
                "work_s": self._queue.work_s() * self._factor(list(self._prefill.values())),
            },
            "dispatched": len(self._sent),
            "workers": workers,
        }

    def _check(self, work: RequestDemand) -> None:
        if work.id in self._queue.entries or work.id in self._sent:
            raise InputError(f"request {work.id} is known already")
        for name, value, least in (
            ("input_tokens", work.input_tokens, 1),
            ("max_output_tokens", work.max_output_tokens, 0),
            ("sequences", work.sequences, 1),
            ("body_bytes", work.body_bytes, 0),
            ("block_tokens", work.block_tokens, 1),
        ):
            if value < least:
                raise InputError(f"request {work.id}: {name} = {value}; must be at least {least}")
        if not (math.isfinite(work.arrival_s) and 0.0 < work.slo.ttft_s < math.inf):
            raise InputError(f"request {work.id}: arrival and TTFT objective must be finite")

    def _refused(self, work: RequestDemand) -> tuple[Reason, str] | None:
        """Why `work` cannot be queued, whatever its objectives; None if it can."""
        if not self._prefill or not self._decode:
            return Reason.NO_PAIR, "no prefill or no decode server is known"
        # The longest of several prompts is at least as long as their mean.
        tokens = work.input_tokens // work.sequences + 1
        if not any(instance.could_hold(tokens) for instance in self._decode.values()):
            most = max(instance.kv_tokens or 0 for instance in self._decode.values())
            return Reason.TOO_LARGE, f"a prompt of {tokens - 1} tokens; servers hold {most}"
        return self._bounds.refuses(work, self.params)

    def _infeasible(
        self,
        entry: QueuedRequest,
        decision: AdmissionDecision,
        ttft_s: float,
        left_s: float,
        now_s: float,
    ) -> AdmissionResult:
        """Carry out `decision` for a request that is expected in `ttft_s` and due in `left_s`."""
        work, reason = entry.work, Reason.INFEASIBLE
        detail = f"the first token is expected in {ttft_s:.1f} s and due in {left_s:.1f} s"
        if decision is AdmissionDecision.REJECT:
            retry_s = min(max(ttft_s - left_s, RETRY_S[0]), RETRY_S[1])
            return AdmissionResult(decision, work.slo, reason, detail, retry_s, ttft_s)
        if decision is AdmissionDecision.DEGRADE:
            longer_s = now_s - work.arrival_s + DEGRADE_SPARE * ttft_s
            slo = replace(work.slo, ttft_ms=min(longer_s * 1e3, TTFT_RANGE_MS[1]))
            entry.work = replace(work, slo=slo)
        else:
            entry.work = replace(work, best_effort=True)
        self._enqueue(entry)
        return AdmissionResult(decision, entry.work.slo, reason, detail, 0.0, ttft_s)

    def _retry_s(self) -> float:
        """When an eighth of the queue is served."""
        servers = max(1, sum(p.available for p in self._prefill.values()))
        work_s = self._queue.work_s() * self._factor(list(self._prefill.values()))
        return min(max(work_s / servers / 8.0, RETRY_S[0]), RETRY_S[1])

    def _predicted_ttft_s(self, entry: QueuedRequest, now_s: float) -> float:
        """Work that is more urgent and can be on time, then its own; NaN where nothing is known.
        Later arrivals that are more urgent are not foreseen."""
        known = [p for p in self._prefill.values() if p.available and p.speed.known]
        if not known:
            return math.nan
        factor = self._factor(known)
        base_latency_s = self._base_latency_s(known)
        due_s = entry.work.deadline_s
        queued_s = self._queue.work_ahead(due_s, now_s, factor, base_latency_s) / len(known)
        ahead_s = min(p.ahead_s(now_s, due_s) for p in known)
        return ahead_s + queued_s + base_latency_s + entry.work_s * factor

    def _expect(self, entry: QueuedRequest, left_s: float, now_s: float) -> None:
        """Others like this one will come; see `Arrivals`."""
        known = [p for p in self._prefill.values() if p.available and p.speed.known]
        if not known or entry.work.best_effort:
            return
        alone_s = self._base_latency_s(known) + entry.work_s * self._factor(known)
        if left_s > alone_s:
            self._arrivals.add(left_s - alone_s, now_s)

    def _base_latency_s(self, prefill: list[PrefillTarget]) -> float:
        """What a request needs beside its work until its first token."""
        return min(p.base_latency_s for p in prefill) + self._tail_s

    def _classify(self, prefill: list[PrefillTarget], now_s: float) -> None:
        held = np.concatenate([p.committed_work(now_s) for p in prefill])
        base_latency_s = self._base_latency_s(prefill)
        self._queue.classify(now_s, held, len(prefill), self._factor(prefill), base_latency_s)

    def _next(self, now_s: float) -> tuple[QueuedRequest | None, DispatchReason]:
        """The next request, and why it is the next."""
        if self._starvation.reservation is not None:
            held = self._queue.entries[self._starvation.reservation[0]]
            if not self._queue.passed_over(held):
                return held, DispatchReason.RESERVATION
        if self._starvation.credit.available:
            starved = self._queue.oldest_starved(now_s, self.params.starve_after)
            if starved is not None:
                return starved, DispatchReason.STARVATION
        entry = self._queue.pick(now_s)
        if entry is None:
            return None, DispatchReason.URGENCY
        behind = self._shares.behind(entry.flow, self.params.fair_slack_s)
        if behind >= 0:
            other = self._queue.pick(now_s, behind)
            if other is not None:
                return other, DispatchReason.SHARE
        return entry, DispatchReason.URGENCY

    def _dispatch_in_turn(
        self, prefill: list[PrefillTarget], decode: list[DecodeTarget], now_s: float
    ) -> list[Assignment]:
        assignments = []
        for entry in self._queue.in_order_of_arrival():
            binding = self.params.binding.value
            pair = in_turn(
                entry, binding, self._turn, untried(prefill, entry), untried(decode, entry), now_s
            )
            self._turn += 1
            assignments.append(self._send(entry, pair, now_s))
        return assignments

    def _send(self, entry: QueuedRequest, pair: Placement, now_s: float) -> Assignment:
        work = entry.work
        entry.charged_s = pair.work_s * pair.prefill.speed.factor
        self._starvation.served(work, entry.charged_s, now_s)
        self._shares.charge(entry.flow, entry.charged_s, self.params.tenant_weights)
        self._dequeue(work.id)
        pair.prefill.send(work.id, work.deadline_s, pair.work_s, work.input_tokens, now_s)
        pair.prefill.cache.insert(work.blocks)
        fresh = pair.decode.fresh(now_s, self.params.stale_s)
        context = work.input_tokens + self._outputs.expected(work) / 2.0
        tokens = self._outputs.kv_tokens(work)
        pair.decode.send(work.id, tokens, context, work.sequences, now_s, fresh)
        self._sent[work.id] = DispatchedRequest(entry, pair.prefill.key, pair.decode.key)
        return Assignment(work.id, pair.prefill.key, pair.decode.key, pair.cached)

    def _enqueue(self, entry: QueuedRequest) -> None:
        work = entry.work
        entry.flow = self._shares.enter(work.slo.slo_class, work.tenant)
        self._queue.add(entry)
        self._bounds.add(work)

    def _dequeue(self, id: int) -> None:
        entry = self._queue.remove(id)
        self._bounds.remove(entry.work)
        self._shares.leave(entry.flow)
        self._starvation.left(id)

    def _release(self, id: int, now_s: float) -> DispatchedRequest | None:
        """Free what a dispatched request holds."""
        sent = self._sent.pop(id, None)
        if sent is None:
            return None
        if sent.prefill in self._prefill:
            self._prefill[sent.prefill].drop(id, now_s)
        if sent.decode in self._decode:
            self._decode[sent.decode].end(id)
        return sent

    @staticmethod
    def _factor(prefill: list[PrefillTarget]) -> float:
        if not prefill:
            return 1.0
        return sum(p.speed.factor for p in prefill) / len(prefill)

    def _instance(self, key: str) -> PrefillTarget | DecodeTarget:
        return self._prefill[key] if key in self._prefill else self._decode[key]
