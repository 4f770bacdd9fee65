"""Real schedulers tell a router about themselves, busy and idle."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import zmq

from kairos.cluster import Cluster
from kairos.cluster.server import Server
from kairos.router.workers.endpoint import Role, parse_endpoint
from kairos.router.workers.telemetry import reachable
from kairos.telemetry import TelemetryReport, decoder
from support.clusters import on
from support.configs import KAIROS
from support.pair import Streaming, kairos_state, wait_for, wait_idle


@contextmanager
def subscribed(server: Server) -> Iterator[zmq.Socket]:
    publisher = kairos_state(server)["telemetry"]
    endpoint = reachable(publisher, parse_endpoint(Role.PREFILL, server.url, None, "test"))
    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(endpoint)
    try:
        yield socket
    finally:
        socket.close(linger=0)
        context.term()


def latest(socket: zmq.Socket) -> TelemetryReport:
    """The next report to arrive, after those that wait already."""
    while socket.poll(0):
        socket.recv()
    assert socket.poll(10_000), "nothing was published for ten seconds"
    return decoder.decode(socket.recv())


@on(KAIROS)
def test_an_idle_server_goes_on_publishing(cluster: Cluster) -> None:
    wait_idle(cluster)
    for server, role in ((cluster.prefill[0], "prefill"), (cluster.decode[0], "decode")):
        with subscribed(server) as socket:
            first, second = latest(socket), latest(socket)
        assert (first.role, first.running, first.waiting) == (role, 0, 0)
        assert first.epoch == second.epoch
        assert first.sequence < second.sequence
        assert first.kv_capacity_tokens > 0


@on(KAIROS)
def test_a_busy_server_tells_what_it_has_to_do(cluster: Cluster) -> None:
    wait_idle(cluster)
    with subscribed(cluster.prefill[0]) as prefill, subscribed(cluster.decode[0]) as decode:
        with Streaming(cluster, 40_000, 20_000) as request:
            wait_for(lambda: (latest(prefill).backlog_s or 0.0) > 0.1, "a backlog")
            assert latest(decode).kv_used_tokens >= 40_000
            wait_for(lambda: request.events > 5, "tokens")
            running = latest(decode)
            assert running.running == 1
            assert running.slack_s is not None
            assert latest(prefill).backlog_s == 0.0
        wait_idle(cluster)
        end = time.monotonic() + 30
        while latest(decode).kv_used_tokens > 0 and time.monotonic() < end:
            pass
        assert latest(decode).running == 0
