"""A server that receives SIGTERM serves its preempted and skipped requests first.

Upstream, too, serves every request that it has accepted.
"""

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


def kairos_count(server: Server, part: str, figure: str) -> int:
    """Return a count of the server's `planner` or `decode` state."""
    state = kairos_state(server)
    assert state is not None
    count: int = state[part][figure]
    return count


def wait_gone(pid: int) -> None:
    process = Path(f"/proc/{pid}")
    wait_for(lambda: is_zombie(pid) or not process.exists(), "the server to end", 60)


def test_preempted_prompts_are_served_before_a_prefill_server_ends(clusters: ClusterPool) -> None:
    with clusters.beside(KAIROS) as cluster:
        server = cluster.prefill[0]
        with (
            Streaming(cluster, 80_000, 2, slo={"ttft_ms": 1_000}) as long,
            Streaming(cluster, 40_000, 2, slo={"ttft_ms": 60_000}) as urgent,
        ):
            wait_for(
                lambda: kairos_count(server, "planner", "preempted") == 1, "a preempted prompt"
            )
            os.kill(server.pid, signal.SIGTERM)
            for one in (urgent, long):
                one.wait_finished()
                assert one.made == 2
        wait_gone(server.pid)


def test_skipped_requests_are_served_before_a_decode_server_ends(clusters: ClusterPool) -> None:
    with clusters.beside(RANDOM_SELECTION) as cluster, ExitStack() as stack:
        server = cluster.decode[0]
        open_ones = [stack.enter_context(Streaming(cluster, 50, 300)) for _ in range(8)]
        wait_for(lambda: kairos_count(server, "decode", "skipped") > 0, "a skipped request")
        os.kill(server.pid, signal.SIGTERM)
        for one in open_ones:
            one.wait_finished()
            assert one.made == 300
        wait_gone(server.pid)
