"""A server that is told to end while requests are parked serves them first, as upstream serves all
that it has taken in."""

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from kairos.cluster import Server
from kairos.cluster.process import is_zombie
from support.clusters import ClusterPool
from support.configs import KAIROS, RANDOM_SELECTION
from support.pair import Streaming, kairos_state, wait_for

pytestmark = pytest.mark.long


def set_aside(server: Server, part: str, figure: str) -> int:
    """Of its `planner` or its `decode`."""
    state = kairos_state(server)
    assert state is not None
    count: int = state[part][figure]
    return count


def wait_gone(pid: int) -> None:
    process = Path(f"/proc/{pid}")
    wait_for(lambda: is_zombie(pid) or not process.exists(), "the server to end", 60)


def test_parked_prompts_are_served_before_a_prefill_server_ends(clusters: ClusterPool) -> None:
    with clusters.beside(KAIROS) as cluster:
        server = cluster.prefill[0]
        with (
            Streaming(cluster, 80_000, 2, slo={"ttft_ms": 1_000}) as long,
            Streaming(cluster, 40_000, 2, slo={"ttft_ms": 60_000}) as urgent,
        ):
            wait_for(lambda: set_aside(server, "planner", "preempted") == 1, "a parked prompt")
            os.kill(server.pid, signal.SIGTERM)
            for one in (urgent, long):
                one.wait_finished()
                assert one.made == 2
        wait_gone(server.pid)


def test_parked_requests_are_served_before_a_decode_server_ends(clusters: ClusterPool) -> None:
    with clusters.beside(RANDOM_SELECTION) as cluster, ExitStack() as stack:
        server = cluster.decode[0]
        open_ones = [stack.enter_context(Streaming(cluster, 50, 300)) for _ in range(8)]
        wait_for(lambda: set_aside(server, "decode", "skipped") > 0, "a parked request")
        os.kill(server.pid, signal.SIGTERM)
        for one in open_ones:
            one.wait_finished()
            assert one.made == 300
        wait_gone(server.pid)
