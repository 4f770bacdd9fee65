"""Health checks of the workers, and probes through whole pairs."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping

import orjson

from kairos.router.background import Background
from kairos.router.config.settings import Workers
from kairos.router.paths import GENERATE
from kairos.router.upstream.attempt import Attempt, AttemptDeps
from kairos.router.upstream.engine_answer import problem_of
from kairos.router.upstream.http_client import NO_FILES, BrokenError
from kairos.router.upstream.leg import LegError
from kairos.router.upstream.rooms import new_rid
from kairos.router.workers.endpoint import Role
from kairos.router.workers.registry import WorkerRegistry
from kairos.router.workers.server_info import ServerInfo, read_server_info
from kairos.router.workers.worker import State, Worker

_log = logging.getLogger(__name__)

READY_S = 15.0
"""The router is ready if a pair generated a token within this time. Without requests, a probe is
sent after half of it."""
_EAGER_S = 0.3  # between two checks of a server that is not in use yet
_INFO_EVERY = 5  # checks
_DEATH_CHECKS = 3
_DEATH_CHECK_S = 1.0
_DEATH_PAUSE_S = 0.1
_PROBE_PROMPT = [1, 2, 3, 4, 5, 6, 7, 8]


class Health:
    """Checks every worker, and keeps a pair proven. The registry gets the results."""

    def __init__(
        self,
        workers: Workers,
        registry: WorkerRegistry,
        parts: AttemptDeps,
        headers: Callable[[], Mapping[str, str]],
    ) -> None:
        self._workers = workers
        self._registry = registry
        self._parts = parts
        self._background = Background()
        self._headers = headers
        self._probing: set[str] = set()
        self._turn = 0
        registry.came = self.watch

    @property
    def ready(self) -> bool:
        """Whether a pair generated a token recently, and a pair is in use now."""
        registry = self._registry
        return time.monotonic() - registry.last_sign_s() < READY_S and all(
            registry.of(role, State.READY) for role in Role
        )

    def watch(self, worker: Worker) -> None:
        """Check a worker until it is forgotten."""
        self._background.start(self._watch(worker), f"health {worker.key}")

    def start(self) -> None:
        self._background.start(self._keep_ready(), "health of pairs")

    async def close(self) -> None:
        await self._background.close()

    async def probe(self, prefill: Worker, decode: Worker) -> LegError | None:
        """Generate two tokens through a pair; return the failure, None if there was none."""
        rid = new_rid()
        pair = Attempt(self._parts, prefill, decode, (rid,))
        body = orjson.dumps(
            {
                "input_ids": _PROBE_PROMPT,
                "sampling_params": {"temperature": 0, "max_new_tokens": 2, "ignore_eos": True},
                "rid": rid,
                "bootstrap_host": prefill.endpoint.host,
                "bootstrap_port": prefill.endpoint.bootstrap_port,
                "bootstrap_room": pair.transfer.rooms[0],
            }
        )
        headers = self._headers()
        problem: LegError | None = None
        try:
            async with asyncio.timeout(self._workers.health_timeout_s):
                await pair.open(GENERATE, body, {Role.PREFILL: headers, Role.DECODE: headers})
                answer = await pair.read_all(1 << 20)
                problem = problem_of(Role.DECODE, pair.status, answer, GENERATE)
        except LegError as error:
            problem = error
        except TimeoutError:
            problem = LegError(Role.DECODE, "probe_timeout", "the probe took too long")
        finally:
            await asyncio.shield(self._background.start(pair.end("probe"), "end of a probe"))
            self._registry.idle(prefill)
            self._registry.idle(decode)
        if problem is None:
            self._registry.succeeded(prefill, decode)
        return problem

    async def _watch(self, worker: Worker) -> None:
        checks = 0
        while self._registry.workers.get(worker.key) is worker:
            try:
                await self._check(worker, checks % _INFO_EVERY == 0)
            except Exception:
                _log.exception("health check of %s", worker.key)
            checks += 1
            in_use = worker.state in (State.READY, State.DRAINING)
            interval_s = self._workers.health_interval_s
            await asyncio.sleep(interval_s if in_use else min(_EAGER_S, interval_s))

    async def _check(self, worker: Worker, with_info: bool) -> None:
        if not await self._answers(worker):
            return
        self._registry.reached(worker)
        if (with_info or worker.suspect or worker.state is State.STARTING) and not (
            await self._learn(worker)
        ):
            return
        wants_probe = worker.state is State.STARTING or (
            worker.state is State.OPEN and worker.breaker.may_probe(time.monotonic())
        )
        if wants_probe:
            await self._prove(worker)

    async def _answers(self, worker: Worker) -> bool:
        """Whether the server's process answers.

        /health is not asked: it generates, and fails behind a long prompt.
        """
        problem = ""
        gone = False
        begun_s = time.monotonic()
        try:
            status, _, _ = await self._call(worker, "/model_info")
            if status == 200:
                worker.unanswered_since_s = None
                return True
            problem = f"/model_info answered {status}"
            worker.unanswered_since_s = None
        except BrokenError as error:
            problem = str(error)
            if error.reason == NO_FILES:
                return False  # that says nothing of the server
            gone = problem == "connection refused"
        except TimeoutError:
            problem = "no answer to /model_info"
            worker.unanswered_since_s = worker.unanswered_since_s or begun_s
        worker.failed_checks += 1
        worker.suspect = True
        if gone or worker.failed_checks >= self._workers.breaker_failures:
            self._registry.unhealthy(worker, problem)
            if worker.unanswered_since_s is not None:
                self._registry.unanswering(worker, problem)
        return False

    async def died(self, worker: Worker) -> bool:
        """Whether the process behind a broken connection has ended.

        It has if it refuses connections, or if another process answers at its address.
        """
        for _ in range(_DEATH_CHECKS):
            try:
                async with asyncio.timeout(_DEATH_CHECK_S):
                    status, _, data = await self._call(worker, "/server_info")
            except (BrokenError, TimeoutError) as error:
                if isinstance(error, BrokenError) and str(error) == "connection refused":
                    return True
                await asyncio.sleep(_DEATH_PAUSE_S)
                continue
            info = await _read_info(status, data)
            return (
                info is not None
                and worker.info is not None
                and info.start_id != worker.info.start_id
            )
        return False

    async def _learn(self, worker: Worker) -> bool:
        """Ask a server for its facts; return whether enough is known of it."""
        try:
            status, _, data = await self._call(worker, "/server_info")
            info = await _read_info(status, data)
        except (BrokenError, TimeoutError):
            info = None
        if info is None:
            # The server is busy or of another kind: the known facts stay.
            return worker.info is not None or worker.state is State.STARTING
        if worker.info is not None and worker.info.start_id != info.start_id:
            self._registry.restarted(worker)
        worker.suspect = False
        self._registry.learned(worker, info)
        return True

    async def _prove(self, worker: Worker) -> None:
        """Put a worker into use if it generates together with another one."""
        if worker.key in self._probing:
            return
        other = Role.DECODE if worker.role is Role.PREFILL else Role.PREFILL
        partners = self._registry.of(other, State.READY) or self._registry.of(
            other, State.STARTING, State.OPEN
        )
        if not partners:
            return
        # At random: two workers that are probed in step would meet the same partners for ever.
        partner = random.choice(partners)
        self._probing.add(worker.key)
        try:
            pair = (worker, partner) if other is Role.DECODE else (partner, worker)
            problem = await self.probe(*pair)
        finally:
            self._probing.discard(worker.key)
        if problem is None:
            self._registry.ready(worker)
            self._registry.ready(partner)
            return
        _log.info("probe of %s with %s: %s", worker.key, partner.key, problem)
        worker.reason = f"probe with {partner.key}: {problem}"
        if worker.state is State.OPEN:
            worker.breaker.failed(time.monotonic())

    async def _keep_ready(self) -> None:
        """Prove one pair after the other while no request goes through."""
        while True:
            await asyncio.sleep(min(1.0, self._workers.health_interval_s))
            self._parts.pool.sweep()
            if time.monotonic() - self._registry.last_success_s < READY_S / 2:
                continue
            prefill, decode = (self._registry.of(role, State.READY) for role in Role)
            if not prefill or not decode:
                continue
            self._turn += 1
            pair = prefill[self._turn % len(prefill)], decode[self._turn % len(decode)]
            problem = await self.probe(*pair)
            if problem is not None:
                _log.warning("probe of %s with %s: %s", pair[0].key, pair[1].key, problem)
                blamed = pair[0] if problem.role is Role.PREFILL else pair[1]
                if problem.reason != "probe_timeout" and not problem.refused:
                    self._registry.failed(blamed, problem.reason)

    async def _call(self, worker: Worker, path: str) -> tuple[int, Mapping[str, str], bytes]:
        return await self._parts.pool.call(
            worker.endpoint,
            "GET",
            path,
            self._workers.health_timeout_s,
            headers=self._headers(),
        )


async def _read_info(status: int, data: bytes) -> ServerInfo | None:
    """Read an answer of /server_info off the event loop, because it may read a file."""
    return await asyncio.to_thread(read_server_info, data) if status == 200 else None
