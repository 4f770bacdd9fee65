"""Order in which a prefill server takes waiting requests."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from kairos.cluster import Cluster
from support.clusters import on
from support.configs import KAIROS, OFF
from support.pair import fresh_prompt, kairos_state, occupancy, send, wait_for, wait_idle

# The profile prefills 20,000 tokens/s and pays for attention: about seven seconds, during which the
# others queue up. The blocker's own deadline is earlier than theirs, so it is not overtaken.
BLOCKER_TOKENS = 80_000
BLOCKER_TTFT_MS = 20_000
# Nearly three chunks of 2,048: no two of them finish in the same batch, and not so soon one after
# the other that the threads here note them in another order on a busy machine.
TOKENS = 6000
FEASIBLE = [(TOKENS, 60_000 - 1000 * rank) for rank in range(6)]  # latest deadline first
# Takes longer than its SLO allows, and is not yet starved when the others are through.
INFEASIBLE = (40_000, 2000)


def prefill_order(cluster: Cluster, arrivals: list[tuple[int, float]]) -> list[int]:
    """Indexes of requests of (prompt tokens, TTFT SLO in ms), queued in this order, in order of
    completion."""
    finished: list[int] = []
    lock = threading.Lock()

    def request(index: int) -> None:
        body = {
            "input_ids": fresh_prompt(arrivals[index][0]),
            "sampling_params": {"max_new_tokens": 1, "ignore_eos": True},
            "kairos": {"ttft_ms": arrivals[index][1]},
        }
        assert send(cluster, body).decode.status_code == 200
        with lock:
            finished.append(index)

    blocker = {
        "input_ids": fresh_prompt(BLOCKER_TOKENS),
        "sampling_params": {"max_new_tokens": 1},
        "kairos": {"ttft_ms": BLOCKER_TTFT_MS},
    }
    with ThreadPoolExecutor(len(arrivals) + 1) as pool:
        blocked = pool.submit(send, cluster, blocker)
        wait_for(lambda: occupancy(cluster.prefill[0])["num_used_tokens"] > 0)
        requests = []
        for index in range(len(arrivals)):
            requests.append(pool.submit(request, index))
            time.sleep(0.15)
        wait_for(lambda: occupancy(cluster.prefill[0])["num_waiting_reqs"] == len(requests))
        assert not blocked.done(), "the blocker must outlast the arrivals"
        for future in (blocked, *requests):
            future.result()
    wait_idle(cluster)
    return finished


@on(KAIROS)
def test_feasible_requests_go_by_deadline(cluster: Cluster) -> None:
    assert prefill_order(cluster, FEASIBLE) == [5, 4, 3, 2, 1, 0]


@on(KAIROS)
def test_an_infeasible_request_goes_behind_the_feasible_ones(cluster: Cluster) -> None:
    assert prefill_order(cluster, [INFEASIBLE, *FEASIBLE]) == [6, 5, 4, 3, 2, 1, 0]


@on(OFF)
def test_upstream_knows_no_deadlines(cluster: Cluster) -> None:
    assert kairos_state(cluster.prefill[0]) is None
    order = prefill_order(cluster, FEASIBLE)
    # Two neighbours may change places in the handshake before the queue.
    assert order.index(0) < order.index(5)
    assert order[0] in (0, 1)
