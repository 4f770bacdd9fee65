"""Talk to the two legs of a disaggregated pair as a router does, headers included."""

import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import httpx

from kairos.cluster import Cluster, Server

TIMEOUT_S = 120.0
# One client, because making one takes tens of milliseconds; no kept connections, because the
# servers close idle ones after five seconds.
_CLIENT = httpx.Client(timeout=TIMEOUT_S, limits=httpx.Limits(max_keepalive_connections=0))


@dataclass(frozen=True)
class Answer:
    """Both legs' responses to one request."""

    prefill: httpx.Response
    decode: httpx.Response


def send(
    cluster: Cluster,
    body: Mapping[str, Any],
    *,
    path: str = "/generate",
    headers: Mapping[str, str] | list[tuple[str, str]] | None = None,
    decode_fields: Mapping[str, Any] | None = None,
) -> Answer:
    """Send one request to both legs of the first pair at once; one leg may get further fields."""
    count = batch_size(body)
    if count is None:
        bootstrap: dict[str, Any] = {
            "bootstrap_host": "127.0.0.1",
            "bootstrap_port": cluster.prefill[0].bootstrap_port,
            "bootstrap_room": room(),
        }
    else:
        bootstrap = {
            "bootstrap_host": ["127.0.0.1"] * count,
            "bootstrap_port": [cluster.prefill[0].bootstrap_port] * count,
            "bootstrap_room": [room() for _ in range(count)],
        }
    both = {**body, **bootstrap}
    bodies = ((cluster.prefill[0], both), (cluster.decode[0], both | (decode_fields or {})))
    with ThreadPoolExecutor(2) as pool:
        legs = [
            pool.submit(_CLIENT.post, leg.url + path, json=leg_body, headers=headers)
            for leg, leg_body in bodies
        ]
        return Answer(*(leg.result() for leg in legs))


class Streaming:
    """One streaming request on both legs; leaving the block closes both connections."""

    def __init__(
        self,
        cluster: Cluster,
        tokens: int,
        new_tokens: int,
        slo: Mapping[str, float] | None = None,
    ) -> None:
        self.rid = f"{room():032x}"
        self.events = 0
        self.made = 0  # tokens, of the last event: a busy server puts several into one
        self._stack = ExitStack()
        self._legs = (cluster.prefill[0].url, cluster.decode[0].url)
        self._body: dict[str, Any] = {
            "input_ids": fresh_prompt(tokens),
            "sampling_params": {"max_new_tokens": new_tokens, "ignore_eos": True},
            "stream": True,
            "rid": self.rid,
            "bootstrap_host": "127.0.0.1",
            "bootstrap_port": cluster.prefill[0].bootstrap_port,
            "bootstrap_room": room(),
        }
        if slo is not None:
            self._body["kairos"] = slo
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> "Streaming":
        for leg in self._legs:
            stream = _CLIENT.stream("POST", f"{leg}/generate", json=self._body)
            response = self._stack.enter_context(stream)
            assert response.status_code == 200
            network = response.extensions["network_stream"]
            self._sockets.append(network.get_extra_info("socket"))
            if leg == self._legs[1]:
                reader = threading.Thread(target=self._read, args=(response,), daemon=True)
                reader.start()
                self._threads.append(reader)
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()
        self._stack.close()

    def disconnect(self) -> None:
        """Close both connections without a word."""
        for connection in self._sockets:
            with suppress(OSError):  # the server may have closed it first
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(TIMEOUT_S)

    def abort(self) -> None:
        """By rid, the decode leg first: it tells the prefill leg."""
        for leg in reversed(self._legs):
            _CLIENT.post(f"{leg}/abort_request", json={"rid": self.rid})

    def wait_finished(self) -> None:
        for thread in self._threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive(), "an aborted request must end its stream"

    def _read(self, response: httpx.Response) -> None:
        try:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    self.events += 1
                    event = json.loads(line.removeprefix("data: "))
                    self.made = event.get("meta_info", {}).get("completion_tokens", self.made)
        except (httpx.HTTPError, httpx.StreamError):
            return


def fresh_prompt(tokens: int) -> list[int]:
    """Token ids of which no server has anything cached."""
    return [*(20 + secrets.randbelow(60) for _ in range(8)), *[20] * (tokens - 8)]


def batch_size(body: Mapping[str, Any]) -> int | None:
    """Requests in a native batch body; None for a single request."""
    ids = body.get("input_ids")
    if isinstance(ids, list) and ids and isinstance(ids[0], list):
        return len(ids)
    return None


def room() -> int:
    """A fresh bootstrap room."""
    return secrets.randbits(62)


def kairos_state(server: Server) -> dict[str, Any] | None:
    """The `kairos` object of /server_info; None on a server without --kairos."""
    info = _CLIENT.get(f"{server.url}/server_info").json()
    return info["internal_states"][0].get("kairos")


def load(server: Server) -> dict[str, Any]:
    """The live load of a server's scheduler, from /v1/loads."""
    loads = _CLIENT.get(f"{server.url}/v1/loads?include=all").json()
    return loads["loads"][0]


def occupancy(server: Server) -> dict[str, int]:
    """What requests hold on a server: every figure is 0 on an idle one."""
    figures = load(server)
    counts = {
        name: figures[name]
        for name in ("num_running_reqs", "num_waiting_reqs", "num_used_tokens", "num_total_tokens")
    }
    queues = {**figures["queues"], **figures["disaggregation"]}
    counts |= {
        name: value
        for name, value in queues.items()
        if isinstance(value, int) and not isinstance(value, bool)
    }
    state = kairos_state(server)
    if state is not None:
        counts["rows_in_use"] = state["rows_in_use"]
    return counts


def wait_for(condition: Callable[[], bool], what: str = "it", limit_s: float = 30.0) -> None:
    """Return once `condition` holds; fail after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit_s} s for {what}"
        time.sleep(0.02)


def wait_idle(cluster: Cluster, limit_s: float = 30.0) -> None:
    """Return once nothing is held on any server; fail with what is left after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while True:
        held = {
            f"{server.name}.{name}": value
            for server in (*cluster.prefill, *cluster.decode)
            for name, value in occupancy(server).items()
            if value
        }
        if not held:
            return
        assert time.monotonic() < deadline, f"still held after {limit_s} s: {held}"
        time.sleep(0.2)
