"""The workers of the router, and the state of each."""

import logging
import time
from collections.abc import Callable, Mapping
from math import inf
from typing import Any

from kairos.latency import Profile
from kairos.router.config.settings import Workers
from kairos.router.observe.metrics import RouterMetrics
from kairos.router.placement.load import WorkerLoad
from kairos.router.queue.dispatch_waiter import DispatchWaiter
from kairos.router.upstream.attempt import Attempt
from kairos.router.upstream.http_client import ConnectionPool
from kairos.router.upstream.leg import LegError
from kairos.router.workers.breaker import Breaker
from kairos.router.workers.discovery import Endpoints
from kairos.router.workers.endpoint import Role
from kairos.router.workers.server_info import ServerInfo
from kairos.router.workers.telemetry import Telemetry
from kairos.router.workers.worker import State, Worker

_log = logging.getLogger(__name__)

_UNREACHED = ("connection_refused", "connect_failed", "connect_timed_out", "TLS_failed")
"""Reasons of attempts that reached no server process."""


class WorkerRegistry:
    """Decides which workers get requests, and tells the dispatcher.

    Args:
        waiting: is told when requests may go where they could not before.
        profile: latency model of all workers.
        headers: for the servers, with their key.

    Attributes:
        workers: by key.
        came: is called with every new worker.
        reachable: whether there is a worker of each role that may answer.
        model_limits: vocabulary and longest prompt, tokens, that every worker takes; None: unknown.
        last_success_s: when a request or a probe last went through, monotonic seconds.
    """

    def __init__(
        self,
        workers: Workers,
        waiting: DispatchWaiter,
        pool: ConnectionPool,
        metrics: RouterMetrics,
        profile: Profile | None,
        headers: Callable[[], Mapping[str, str]],
    ) -> None:
        self.workers: dict[str, Worker] = {}
        self.telemetry = Telemetry(self._loaded, pool, headers)
        self.came: Callable[[Worker], None] = lambda _: None
        self.last_success_s = 0.0
        self._workers = workers
        self._dispatcher = waiting.dispatcher
        self._pool = pool
        self._metrics = metrics
        self._profile = profile
        self._changed = waiting.schedule_dispatch
        self.model_limits: tuple[int | None, int | None] = None, None
        self.reachable = False

    def of(self, role: Role, *states: State) -> list[Worker]:
        """Return the workers of a role in one of these states."""
        return [i for i in self.workers.values() if i.role is role and i.state in states]

    def find(self, role: Role, key: str) -> Worker:
        """Return the worker of an assignment.

        Raises:
            LegError: it has left since.
        """
        worker = self.workers.get(key)
        if worker is None:
            raise LegError(role, "server_gone", "the server was removed")
        return worker

    def last_sign_s(self) -> float:
        """Return when a pair last generated a token, monotonic seconds; minus infinity: never.

        A request that went through counts, and a stream that flows.
        """
        flowing: list[float] = [
            heard_s
            for worker in self.of(Role.DECODE, State.READY, State.DRAINING)
            for attempt in worker.attempts
            if (heard_s := attempt.streaming_s()) is not None
        ]
        return max(self.last_success_s or -inf, *flowing, -inf)

    def learned(self, worker: Worker, info: ServerInfo) -> None:
        """Take over what a worker said about itself."""
        introduced_blindly = worker.info is None and self._dispatcher.knows(worker.key)
        worker.info = info
        if introduced_blindly:
            # A partner's probe put it into use before its sizes were known.
            self._withdraw(worker)
            self._introduce(worker)
            self._dispatcher.set_available(worker.key, worker.state is State.READY)
        self._share_facts()

    def _share_facts(self) -> None:
        """Work out what holds for all workers, from what each said about itself."""
        known = [worker.info for worker in self.workers.values() if worker.info is not None]
        self._metrics.model.names = frozenset(info.model for info in known if info.model)
        vocabularies = [info.vocab_size for info in known if info.vocab_size]
        longest = [info.prompt_tokens for info in known if info.prompt_tokens]
        self.model_limits = min(vocabularies, default=None), min(longest, default=None)

    def discovered(self, added: Endpoints, gone: Endpoints) -> None:
        """Take over the workers that came, and drain those that went."""
        for endpoint in sorted(gone):
            if (worker := self.workers.get(endpoint.key)) is not None:
                worker.leaving = True
                self._set(worker, State.DRAINING)
                self.idle(worker)
        for endpoint in sorted(added):
            if (old := self.workers.get(endpoint.key)) is not None:
                self._forget(old)
            breaker = Breaker(self._workers.breaker_failures, self._workers.breaker_open_s)
            worker = self.workers[endpoint.key] = Worker(endpoint, breaker)
            self._count_reachable()
            self.came(worker)

    def drain(self, key: str) -> None:
        """Send nothing new to a worker. KeyError if it is not known."""
        worker = self.workers[key]
        worker.drained = True
        self._set(worker, State.DRAINING)

    def undrain(self, key: str) -> None:
        """Let a drained worker get requests again, once a probe has proven it."""
        worker = self.workers[key]
        if worker.state is State.DRAINING and not worker.leaving:
            worker.drained = False
            self._set(worker, State.STARTING)

    def ready(self, worker: Worker) -> None:
        """Note that a whole pair answered through a worker."""
        worker.breaker.proven()
        if worker.state in (State.STARTING, State.OPEN):
            self._set(worker, State.READY)

    def reached(self, worker: Worker) -> None:
        """Note that a worker answers. A probe has to prove it before it gets requests."""
        worker.failed_checks = 0
        if worker.state is State.DOWN:
            self._set(worker, State.STARTING)

    def unhealthy(self, worker: Worker, reason: str) -> None:
        """Send nothing new to a worker whose health checks fail. Running requests stay."""
        worker.reason = reason
        if worker.state is not State.DRAINING:
            self._set(worker, State.DOWN)
        self._pool.drop(worker.endpoint)

    def unanswering(self, worker: Worker, reason: str) -> None:
        """End the legs that have been silent since a worker stopped to answer health checks.

        A process that hangs resets no connection.
        """
        since_s = worker.unanswered_since_s
        for attempt in list(worker.attempts):
            silent_s = attempt.silent_since_s(worker)
            if since_s is not None and silent_s is not None and silent_s <= since_s:
                text = f"the {worker.role.value} server: {reason}"
                attempt.fail(LegError(worker.role, "server_down", text))

    def unfit(self, worker: Worker, reason: str) -> None:
        """Take a worker out that refuses the key or lacks the endpoint, until a probe proves it."""
        worker.reason = reason
        if worker.state is State.READY:
            self._set(worker, State.STARTING)

    def restarted(self, worker: Worker) -> None:
        """Forget the state of a worker: another process answers at its address."""
        _log.warning("%s server %s: restarted", worker.role.value, worker.key)
        worker.restarts += 1
        self._metrics.worker_restarts.labels(*self._labels(worker)).inc()
        self._pool.drop(worker.endpoint)
        # It is introduced anew when it is ready: with its sizes, and where it reports.
        self._withdraw(worker)
        # It was drained for this restart.
        worker.drained = False
        if worker.state in (State.READY, State.DRAINING):
            self._set(worker, State.STARTING)

    def succeeded(self, *workers: Worker) -> None:
        """Note that a request or a probe went through these workers."""
        self.last_success_s = time.monotonic()
        for worker in workers:
            worker.breaker.succeeded()

    def failed(self, worker: Worker, reason: str, digest: int | None = None) -> None:
        """Count a failure against a worker, and open its breaker after several in a row.

        `digest` is that of a request that the server answered with an error. The request may be at
        fault, so the same request counts once.
        """
        worker.suspect = True
        label = self._metrics.reason(reason)
        self._metrics.worker_failures.labels(*self._labels(worker), label).inc()
        opened = worker.breaker.failed(time.monotonic(), digest)
        if worker.state is not State.READY:
            return
        if opened and self._may_open(worker.role):
            worker.reason = reason
            self._set(worker, State.OPEN)
        elif opened:
            worker.breaker.proven()
        elif reason in _UNREACHED:
            # Its process may be gone: a further attempt shall not find it before it is proven.
            self._set(worker, State.STARTING)

    def attempt_failed(self, attempt: Attempt, error: LegError) -> None:
        """Count a failed attempt, and charge the worker at fault."""
        if error.ours:
            return
        label = self._metrics.reason(error.reason)
        self._metrics.pair_failures.labels(error.role.value, label).inc()
        if error.refused or error.busy:
            return
        if error.unfit:
            self.unfit(attempt.worker(error.role), error.reason)
            return
        for role in Role:
            # Where either may be at fault, probes through whole pairs find the one that is.
            if error.shared or error.role is role:
                digest = attempt.digest if error.status else None
                self.failed(attempt.worker(role), error.reason, digest)

    def _loaded(self, key: str, load: WorkerLoad) -> None:
        self._dispatcher.loads(key, load, time.monotonic())
        self._changed()

    def idle(self, worker: Worker) -> None:
        """Forget a leaving worker once its last attempt has ended."""
        if worker.leaving and not worker.attempts:
            self._forget(worker)

    def snapshot(self) -> list[dict[str, Any]]:
        """Return plain values for /workers."""
        details = self._dispatcher.snapshot(time.monotonic())["workers"]
        watched = self.telemetry.snapshot()
        return [
            {
                "worker": i.key,
                "role": i.role.value,
                "url": i.endpoint.url,
                "bootstrap_port": i.endpoint.bootstrap_port,
                "state": i.state.value,
                "reason": i.reason or None,
                "kairos": i.kairos,
                "running": len(i.attempts),
                "restarts": i.restarts,
                "breaker": i.breaker.state.name.lower(),
                "leaving": i.leaving,
                "scheduling": details.get(i.key, {}),
                "telemetry": watched.get(i.key),
            }
            for i in sorted(self.workers.values(), key=lambda i: (i.role.value, i.key))
        ]

    def gauges(self) -> None:
        """Bring the metrics of the workers up to date."""
        metrics = self._metrics
        for role in Role:
            for state in State:
                metrics.workers.labels(role.value, state.value).set(len(self.of(role, state)))
        details = self._dispatcher.snapshot(time.monotonic())["workers"]
        for worker in self.workers.values():
            labels = self._labels(worker)
            metrics.breaker.labels(*labels).set(worker.breaker.state.value)
            detail = details.get(worker.key, {})
            if (age_s := detail.get("report_age_s")) is not None:
                metrics.telemetry_age.labels(*labels).set(age_s)
            if (backlog_s := detail.get("backlog_s")) is not None:
                metrics.backlog.labels(*labels).set(backlog_s)

    def _may_open(self, role: Role) -> bool:
        """Whether one more worker of a role may be taken out by its breaker.

        At most half of the workers that answer are: requests that make workers fail never take all
        of them out.
        """
        out, ready = (len(self.of(role, state)) for state in (State.OPEN, State.READY))
        return 2 * (out + 1) <= out + ready

    def _forget(self, worker: Worker) -> None:
        if self.workers.get(worker.key) is not worker:
            return
        del self.workers[worker.key]
        self._count_reachable()
        worker.leaving = True
        self._pool.drop(worker.endpoint)
        self.telemetry.forget(worker.key)
        self._withdraw(worker)
        self._metrics.forget_worker(worker.role.value, worker.key)
        self._share_facts()

    def _set(self, worker: Worker, state: State) -> None:
        if worker.state is state:
            return
        if worker.state is State.DRAINING and (worker.drained or worker.leaving):
            return
        _log.info(
            "%s server %s: %s, was %s",
            worker.role.value, worker.key, state.value, worker.state.value,
        )  # fmt: skip
        worker.state = state
        self._count_reachable()
        if state is State.READY:
            worker.reason = ""
        available = state is State.READY
        if self._dispatcher.knows(worker.key):
            self._dispatcher.set_available(worker.key, available)
        elif available:
            self._introduce(worker)
        if available:
            self._changed()

    def _count_reachable(self) -> None:
        states = (State.READY, State.STARTING, State.OPEN)
        self.reachable = all(self.of(role, *states) for role in Role)

    def _introduce(self, worker: Worker) -> None:
        info = worker.info
        self._dispatcher.add_worker(
            worker.key,
            worker.role,
            self._profile,
            preemptive=worker.kairos,
            kv_tokens=info.kv_tokens if info else None,
            max_running=info.max_running if info else None,
        )
        self.telemetry.watch(worker.endpoint, info.telemetry if info else None)

    def _withdraw(self, worker: Worker) -> None:
        if self._dispatcher.knows(worker.key):
            self._dispatcher.remove_worker(worker.key)

    def _labels(self, worker: Worker) -> tuple[str, str]:
        return worker.role.value, self._metrics.worker(worker.key)
