"""Talk to the two legs of a disaggregated pair as a router does, headers included."""

import secrets
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

from kairos.cluster import Cluster, Server

TIMEOUT_S = 120.0


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
) -> Answer:
    """Send one request to both legs of the first pair at once."""
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
    with ThreadPoolExecutor(2) as pool:
        legs = [
            pool.submit(httpx.post, leg.url + path, json=both, headers=headers, timeout=TIMEOUT_S)
            for leg in (cluster.prefill[0], cluster.decode[0])
        ]
        return Answer(*(leg.result() for leg in legs))


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
    info = httpx.get(f"{server.url}/server_info", timeout=TIMEOUT_S).json()
    return info["internal_states"][0].get("kairos")


def load(server: Server) -> dict[str, Any]:
    """The live load of a server's scheduler, from /v1/loads."""
    loads = httpx.get(f"{server.url}/v1/loads?include=all", timeout=TIMEOUT_S).json()
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
