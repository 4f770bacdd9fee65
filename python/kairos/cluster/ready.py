"""Readiness of a cluster: generations through every pair and the router, then a frozen collector.

A cluster is ready when one generation has passed through every prefill-decode pair, and then one
through the router. After that, the servers' garbage collectors are told to ignore the objects that
start-up made.
"""

import http.client
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from kairos.cluster.failure import ClusterError
from kairos.cluster.ports import LOOPBACK, is_listening
from kairos.cluster.server import Server

_REQUEST_LIMIT_S = 60.0
_RETRY_S = 0.3
_POLL_S = 0.05
# Token ids, not text: servers may run without a tokenizer. The second token is a decode step.
_PROMPT = [1, 2, 3, 4, 5, 6, 7, 8]
_NEW_TOKENS = 2


class _RefusedError(Exception):
    """The server answers 400, so a further attempt is pointless."""


@dataclass
class ReadinessProbe:
    """One generation that has to succeed; every server of the probe receives the same request.

    Attributes:
        servers: one server, or a prefill and a decode server.
        bootstrap_port: port of the prefill server's KV handshake; None for one server.
        done: whether a generation has succeeded.
        error: reason of the last failed attempt; empty if there was none.
    """

    servers: tuple[Server, ...]
    bootstrap_port: int | None = None
    done: bool = False
    error: str = ""
    _answers: list[Future[None]] = field(default_factory=list)
    _not_before: float = 0.0

    def advance(self, pool: ThreadPoolExecutor) -> None:
        """Send the request, or check for answers; never block.

        Args:
            pool: runs the requests.

        Raises:
            ClusterError: a server answers 400.
        """
        if not self._answers:
            if time.monotonic() >= self._not_before:
                body = self._body()
                self._answers = [pool.submit(_generate, server, body) for server in self.servers]
            return
        if not all(answer.done() for answer in self._answers):
            return
        errors = [error for answer in self._answers if (error := answer.exception())]
        self._answers.clear()
        self._not_before = time.monotonic() + _RETRY_S
        for error in errors:
            if isinstance(error, _RefusedError):
                raise ClusterError(str(error)) from error
            self.error = str(error)
        self.done = not errors

    def _body(self) -> dict[str, object]:
        body: dict[str, object] = {
            "input_ids": _PROMPT,
            "sampling_params": {
                "temperature": 0,
                "max_new_tokens": _NEW_TOKENS,
                "ignore_eos": True,
            },
        }
        if self.bootstrap_port is not None:
            body["bootstrap_host"] = LOOPBACK
            body["bootstrap_port"] = self.bootstrap_port
            body["bootstrap_room"] = random.getrandbits(63)
        return body


def pair_probes(servers: Sequence[Server]) -> list[ReadinessProbe]:
    """Return a probe of every prefill-decode pair, or of the single server."""
    probes = [ReadinessProbe((server,)) for server in servers if server.role == "single"]
    for prefill in servers:
        for decode in servers:
            if prefill.role == "prefill" and decode.role == "decode":
                probes.append(ReadinessProbe((prefill, decode), prefill.bootstrap_port))
    return probes


def wait_ready(
    servers: Sequence[Server],
    pool: ThreadPoolExecutor,
    limit_s: float,
    on_poll: Callable[[dict[str, str]], None],
) -> dict[str, float]:
    """Block until every pair, and then the router, has answered.

    Args:
        servers: of every role.
        pool: runs the requests; it needs two threads per pair.
        limit_s: seconds from now.
        on_poll: called every 50 ms with the stage of each server; may raise to end the wait.

    Returns:
        Seconds from the call until each server accepted connections, by name.

    Raises:
        ClusterError: the cluster is not ready in time, or a server refuses the request.
    """
    begin = time.monotonic()
    listening: dict[str, float] = {}
    probes = pair_probes(servers)
    router_probes = [ReadinessProbe((server,)) for server in servers if server.role == "router"]
    every = [*probes, *router_probes]
    while not all(probe.done for probe in every):
        on_poll(_stages(servers, listening, every))
        elapsed = time.monotonic() - begin
        for server in servers:
            if server.name not in listening and is_listening(server.port):
                listening[server.name] = elapsed
        due = router_probes if all(probe.done for probe in probes) else probes
        for probe in due:
            if not probe.done and all(server.name in listening for server in probe.servers):
                probe.advance(pool)
        if elapsed > limit_s:
            stages = _stages(servers, listening, every)
            errors = {probe.error for probe in every if probe.error}
            raise ClusterError(
                f"not ready after {limit_s:g} s: "
                + ", ".join([*(f"{name} {stage}" for name, stage in stages.items()), *errors])
            )
        time.sleep(_POLL_S)
    _freeze_gc(servers, pool, lambda: on_poll(_stages(servers, listening, probes)))
    return listening


def _freeze_gc(
    servers: Sequence[Server], pool: ThreadPoolExecutor, on_poll: Callable[[], None]
) -> None:
    """Have the servers' garbage collectors ignore the objects that exist now.

    Upstream does so itself after its warm-up request, which is switched off here. Without it, a
    collection now and then pauses all streams of a server for half a second.

    Raises:
        ClusterError: a server does not answer with 200.
    """
    answers = {
        server.name: pool.submit(_post, server, "/freeze_gc", {})
        for server in servers
        if server.role != "router"
    }
    while not all(answer.done() for answer in answers.values()):
        on_poll()
        time.sleep(_POLL_S)
    for name, answer in answers.items():
        try:
            status, text = answer.result()
        except ConnectionError as error:
            raise ClusterError(str(error)) from error
        if status != 200:
            raise ClusterError(f"{name} answers /freeze_gc with {status}: {text[:500]!r}")


def _stages(
    servers: Sequence[Server], listening: Mapping[str, float], probes: Sequence[ReadinessProbe]
) -> dict[str, str]:
    stages = {}
    for server in servers:
        if server.name not in listening:
            stages[server.name] = "starting"
        elif all(probe.done for probe in probes if server in probe.servers):
            stages[server.name] = "ready"
        else:
            stages[server.name] = "listening"
    return stages


def _generate(server: Server, body: Mapping[str, object]) -> None:
    status, text = _post(server, "/generate", body)
    reason = f"{server.name} answers a generation with {status}: {text[:500]!r}"
    if status == 400:
        raise _RefusedError(reason)
    if status != 200 or not _has_tokens(text):
        raise ConnectionError(reason)


def _post(server: Server, path: str, body: Mapping[str, object]) -> tuple[int, bytes]:
    """Return status and body of the answer.

    Raises:
        ConnectionError: there is no answer.
    """
    connection = http.client.HTTPConnection(LOOPBACK, server.port, timeout=_REQUEST_LIMIT_S)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"{server.name}{path}: {type(error).__name__} {error}") from error
    finally:
        connection.close()


def _has_tokens(text: bytes) -> bool:
    try:
        meta = json.loads(text)["meta_info"]
        return bool(meta["completion_tokens"] > 0 and meta["finish_reason"]["type"] != "abort")
    except (ValueError, LookupError, TypeError):
        return False
