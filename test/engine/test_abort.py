"""Aborts leave nothing behind on either server: tokens, rows and queues return to idle."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from kairos.cluster import Cluster
from support.clusters import on
from support.configs import KAIROS
from support.pair import TIMEOUT_S, occupancy, room, send, wait_idle

# At 20,000 tokens/s and 8 ms a step: about three seconds of prefill, minutes of decode.
LONG_PROMPT = 60_000
LONG_OUTPUT = 20_000


@pytest.fixture(autouse=True)
def idle(cluster: Cluster) -> Iterator[None]:
    wait_idle(cluster)
    yield
    wait_idle(cluster)


class Streaming:
    """One streaming request on both legs; leaving the block closes both connections."""

    def __init__(self, cluster: Cluster, tokens: int, new_tokens: int, seed: int = 0) -> None:
        self.rid = f"{room():032x}"
        self.events = 0
        self._stack = ExitStack()
        self._legs = (cluster.prefill[0].url, cluster.decode[0].url)
        self._body: dict[str, Any] = {
            "input_ids": [200 + seed] * tokens,
            "sampling_params": {"max_new_tokens": new_tokens, "ignore_eos": True},
            "stream": True,
            "rid": self.rid,
            "bootstrap_host": "127.0.0.1",
            "bootstrap_port": cluster.prefill[0].bootstrap_port,
            "bootstrap_room": room(),
        }
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Streaming":
        for leg in self._legs:
            stream = httpx.stream("POST", f"{leg}/generate", json=self._body, timeout=TIMEOUT_S)
            response = self._stack.enter_context(stream)
            assert response.status_code == 200
            if leg == self._legs[1]:
                reader = threading.Thread(target=self._read, args=(response,), daemon=True)
                reader.start()
                self._threads.append(reader)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        for thread in self._threads:
            thread.join(TIMEOUT_S)

    def abort(self) -> None:
        """By rid, the decode leg first: it tells the prefill leg."""
        for leg in reversed(self._legs):
            httpx.post(f"{leg}/abort_request", json={"rid": self.rid}, timeout=TIMEOUT_S)

    def wait_finished(self) -> None:
        for thread in self._threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive(), "an aborted request must end its stream"

    def _read(self, response: httpx.Response) -> None:
        try:
            for line in response.iter_lines():
                self.events += line.startswith("data: {")
        except (httpx.HTTPError, httpx.StreamError):
            return


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"never saw {what}"
        time.sleep(0.05)


def in_prefill(cluster: Cluster) -> None:
    """Both servers hold the request: KV and a row each, and the figures are live."""
    for server in (cluster.prefill[0], cluster.decode[0]):
        for figure in ("num_used_tokens", "rows_in_use"):
            wait_until(
                lambda server=server, figure=figure: occupancy(server)[figure] > 0,
                f"{figure} on {server.name}",
            )


def end(request: Streaming, by: str) -> None:
    if by == "rid":
        request.abort()
        request.wait_finished()


@on(KAIROS)
@pytest.mark.parametrize("by", ["rid", "disconnect"])
def test_in_mid_prefill(cluster: Cluster, by: str) -> None:
    with Streaming(cluster, LONG_PROMPT, 10) as request:
        in_prefill(cluster)
        assert request.events == 0, "still in prefill"
        end(request, by)
    wait_idle(cluster)


@on(KAIROS)
@pytest.mark.parametrize("by", ["rid", "disconnect"])
def test_in_mid_decode(cluster: Cluster, by: str) -> None:
    with Streaming(cluster, 100, LONG_OUTPUT) as request:
        wait_until(lambda: request.events > 5, "tokens")
        assert occupancy(cluster.decode[0])["num_running_reqs"] == 1
        end(request, by)
    wait_idle(cluster)


@on(KAIROS)
@pytest.mark.parametrize("by", ["rid", "disconnect"])
def test_while_waiting_behind_a_long_prompt(cluster: Cluster, by: str) -> None:
    with Streaming(cluster, LONG_PROMPT, 2, seed=1) as ahead:
        in_prefill(cluster)
        with Streaming(cluster, 3000, 10, seed=2) as waiting:
            wait_until(
                lambda: occupancy(cluster.prefill[0])["num_waiting_reqs"] > 0, "a waiting request"
            )
            assert waiting.events == 0
            end(waiting, by)
        ahead.wait_finished()
        assert ahead.events >= 2, "the request ahead is unharmed"
    wait_idle(cluster)


@on(KAIROS)
def test_servers_serve_on_after_aborts(cluster: Cluster) -> None:
    for seed in range(4):
        with Streaming(cluster, 20_000, 10, seed=seed):
            in_prefill(cluster)
    wait_idle(cluster)
    body = {"input_ids": [50] * 30, "sampling_params": {"max_new_tokens": 4, "ignore_eos": True}}
    answer = send(cluster, body)
    assert answer.decode.status_code == 200
    assert len(answer.decode.json()["output_ids"]) == 4
