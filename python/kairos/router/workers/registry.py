"""The servers in use: who gets requests, who does not, and why."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from kairos.latency import Profile
from kairos.router.config.settings import Workers
from kairos.router.observe.metrics import BREAKER_STATES, RouterMetrics
from kairos.router.placement.load import InstanceLoad
from kairos.router.queue.dispatcher import Dispatcher
from kairos.router.upstream.attempt import Pair
from kairos.router.upstream.http_client import ConnectionPool
from kairos.router.upstream.leg import LegError
from kairos.router.workers.breaker import Breaker
from kairos.router.workers.discovery import Endpoints
from kairos.router.workers.endpoint import Endpoint, Role
from kairos.router.workers.telemetry import Telemetry
from kairos.router.workers.worker import State, Worker

_log = logging.getLogger(__name__)


class WorkerRegistry:
    """Keeps the dispatcher's picture of the servers in step with theirs.

    Args:
        profile: latency model of all of them.
        changed: called when requests may go where they could not before.
    """

    def __init__(
        self,
        workers: Workers,
        dispatcher: Dispatcher,
        pool: ConnectionPool,
        metrics: RouterMetrics,
        profile: Profile | None,
        changed: Callable[[], None],
    ) -> None:
        self.workers: dict[str, Worker] = {}
        self.telemetry: Telemetry | None = None
        self.came: Callable[[Worker], None] = lambda _: None
        self.last_success_s = 0.0
        self._workers = workers
        self._dispatcher = dispatcher
        self._pool = pool
        self._metrics = metrics
        self._profile = profile
        self._changed = changed
        self._known: set[str] = set()  # to the dispatcher

    def of(self, role: Role, *states: State) -> list[Worker]:
        """Servers of a role in one of these states."""
        return [i for i in self.workers.values() if i.role is role and i.state in states]

    def discovered(self, added: Endpoints, gone: Endpoints) -> None:
        """Servers came and went."""
        for endpoint in sorted(gone):
            self._leave(endpoint)
        for endpoint in sorted(added):
            self._come(endpoint)

    def drain(self, key: str) -> None:
        """Send a server nothing new. KeyError if it is not known."""
        self._set(self.workers[key], State.DRAINING)

    def ready(self, instance: Worker) -> None:
        """A whole pair answered through it."""
        instance.breaker.proven()
        if instance.state in (State.STARTING, State.OPEN):
            self._set(instance, State.READY)

    def reached(self, instance: Worker) -> None:
        """It answers again; it has to prove itself through a pair before it gets requests."""
        instance.failed_checks = 0
        if instance.state is State.DOWN:
            self._set(instance, State.STARTING)

    def lost(self, instance: Worker, reason: str) -> None:
        """It does not answer any more: what it works on has failed."""
        if instance.state is not State.DRAINING:
            self._set(instance, State.DOWN)
        self._pool.drop(instance.endpoint)
        for pair in list(instance.pairs):
            pair.fail(
                LegError(
                    instance.role, "server_down", f"the {instance.role.value} server: {reason}"
                )
            )

    def restarted(self, instance: Worker) -> None:
        """Another process answers under the same address: nothing that was known of it holds."""
        _log.warning("%s server %s: restarted", instance.role.value, instance.key)
        instance.restarts += 1
        self._metrics.worker_restarts.labels(*self._labels(instance)).inc()
        self._pool.drop(instance.endpoint)
        if instance.key in self._known:
            # It is introduced anew when it is ready: with its sizes, and where it reports.
            self._known.discard(instance.key)
            self._dispatcher.remove_instance(instance.key)
        if instance.state is State.READY:
            self._set(instance, State.STARTING)

    def succeeded(self, *instances: Worker) -> None:
        """A request went through these."""
        self.last_success_s = time.monotonic()
        for instance in instances:
            instance.breaker.succeeded()

    def failed(self, instance: Worker, reason: str) -> None:
        """A request failed by this server's fault."""
        instance.suspect = True
        label = self._metrics.reason(reason)
        self._metrics.worker_failures.labels(*self._labels(instance), label).inc()
        opened = instance.breaker.failed(time.monotonic())
        if instance.state is not State.READY:
            return
        if opened:
            self._set(instance, State.OPEN)
        elif reason.startswith("connect"):
            # Its process may be gone: a further attempt shall not find it before it is proven.
            self._set(instance, State.STARTING)

    def attempt_failed(self, pair: Pair | None, error: LegError) -> None:
        """Count it, against the server at fault if one is."""
        if error.ours:
            return
        label = self._metrics.reason(error.reason)
        self._metrics.pair_failures.labels(error.role.value, label).inc()
        if error.refused or pair is None:
            return
        for role, instance in ((Role.PREFILL, pair.prefill), (Role.DECODE, pair.decode)):
            # Of two that may be at fault, probes through whole pairs find the one that is.
            if error.shared or error.role is role:
                self.failed(instance, error.reason)

    def flushed(self, key: str) -> None:
        """The prefix cache of a server is empty."""
        if key in self._known:
            self._dispatcher.forget_cache(key)

    def load(self, key: str, load: InstanceLoad) -> None:
        """A report of a server came in."""
        if key in self._known:
            self._dispatcher.loads(key, load, time.monotonic())
            self._changed()

    def idle(self, instance: Worker) -> None:
        """An attempt through it ended; one that is leaving is forgotten when none is left."""
        if instance.leaving and not instance.pairs:
            self._forget(instance)

    def snapshot(self) -> list[dict[str, Any]]:
        """For /workers."""
        details = self._dispatcher.snapshot(time.monotonic())["instances"]
        watched = self.telemetry.snapshot() if self.telemetry else {}
        return [
            {
                "worker": i.key,
                "role": i.role.value,
                "url": i.endpoint.url,
                "bootstrap_port": i.endpoint.bootstrap_port,
                "state": i.state.value,
                "kairos": i.kairos,
                "running": len(i.pairs),
                "restarts": i.restarts,
                "breaker": BREAKER_STATES[i.breaker.state.value],
                "leaving": i.leaving,
                "scheduling": _plain(details.get(i.key, {})),
                "telemetry": watched.get(i.key),
            }
            for i in sorted(self.workers.values(), key=lambda i: (i.role.value, i.key))
        ]

    def gauges(self) -> None:
        """Bring the metrics of the servers up to date."""
        metrics = self._metrics
        for role in Role:
            for state in State:
                metrics.workers.labels(role.value, state.value).set(len(self.of(role, state)))
        details = self._dispatcher.snapshot(time.monotonic())["instances"]
        for instance in self.workers.values():
            labels = self._labels(instance)
            metrics.breaker.labels(*labels).set(instance.breaker.state.value)
            detail = details.get(instance.key, {})
            if (age_s := detail.get("report_age_s")) is not None:
                metrics.telemetry_age.labels(*labels).set(age_s)
            if (backlog_s := detail.get("backlog_s")) is not None:
                metrics.backlog.labels(*labels).set(backlog_s)

    def _come(self, endpoint: Endpoint) -> None:
        old = self.workers.get(endpoint.key)
        if old is not None:
            self._forget(old)
        breaker = Breaker(self._workers.breaker_failures, self._workers.breaker_open_s)
        instance = Worker(endpoint, breaker)
        self.workers[endpoint.key] = instance
        self.came(instance)

    def _leave(self, endpoint: Endpoint) -> None:
        instance = self.workers.get(endpoint.key)
        if instance is not None:
            instance.leaving = True
            self._set(instance, State.DRAINING)
            self.idle(instance)

    def _forget(self, instance: Worker) -> None:
        if self.workers.get(instance.key) is not instance:
            return
        del self.workers[instance.key]
        instance.leaving = True
        self._pool.drop(instance.endpoint)
        if self.telemetry is not None:
            self.telemetry.forget(instance.key)
        if instance.key in self._known:
            self._known.discard(instance.key)
            self._dispatcher.remove_instance(instance.key)
        self._metrics.forget_worker(instance.role.value, instance.key)

    def _set(self, instance: Worker, state: State) -> None:
        if instance.state is state:
            return
        if (
            instance.state is State.DRAINING
            and not instance.leaving
            and state is not State.DRAINING
        ):
            return
        _log.info(
            "%s server %s: %s, was %s",
            instance.role.value, instance.key, state.value, instance.state.value,
        )  # fmt: skip
        instance.state = state
        available = state is State.READY
        if available and instance.key not in self._known:
            self._introduce(instance)
        elif instance.key in self._known:
            self._dispatcher.set_available(instance.key, available)
        if available:
            self._changed()

    def _introduce(self, instance: Worker) -> None:
        info = instance.info
        self._dispatcher.add_instance(
            instance.key,
            instance.role,
            self._profile,
            preemptive=instance.kairos,
            kv_tokens=_count(info, "max_total_num_tokens"),
            max_running=_count(info, "max_running_requests"),
        )
        self._known.add(instance.key)
        if self.telemetry is not None:
            self.telemetry.watch(instance.key, instance.endpoint.url, info)

    def _labels(self, instance: Worker) -> tuple[str, str]:
        return instance.role.value, self._metrics.worker(instance.key)


def _count(info: Mapping[str, Any], name: str) -> int | None:
    value = info.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        return None
    return value


def _plain(details: Mapping[str, Any]) -> dict[str, Any]:
    """Without numbers that JSON has no form for."""
    return {
        name: None if isinstance(value, float) and value - value != 0.0 else value
        for name, value in details.items()
    }
