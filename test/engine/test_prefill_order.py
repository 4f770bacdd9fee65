"""Order in which a prefill server takes what waits."""

import threading
from concurrent.futures import ThreadPoolExecutor

from kairos.cluster import Cluster
from support.clusters import on
from support.configs import KAIROS, OFF
from support.pair import fresh_prompt, kairos_state, occupancy, send, wait_for, wait_idle

# The profile prefills 20,000 tokens/s and pays for attention: about seven seconds, during which the
# others queue up. The blocker's own deadline is earlier than theirs, so it is not overtaken.
BLOCKER_TOKENS = 80_000
BLOCKER_TTFT_MS = 20_000
# More than half a chunk of 2,048, and less than one: no two of them finish in the same batch.
TOKENS = 2000
PROMISED_MS = [60_000 - 1000 * rank for rank in range(6)]  # latest deadline first


def prefill_order(cluster: Cluster, ttft_ms: list[float]) -> list[int]:
    """Indexes of requests with these TTFT SLOs, queued in this order, in order of completion."""
    finished: list[int] = []
    lock = threading.Lock()

    def request(index: int) -> None:
        body = {
            "input_ids": fresh_prompt(TOKENS),
            "sampling_params": {"max_new_tokens": 1, "ignore_eos": True},
            "kairos": {"ttft_ms": ttft_ms[index]},
        }
        assert send(cluster, body).decode.status_code == 200
        with lock:
            finished.append(index)

    blocker = {
        "input_ids": fresh_prompt(BLOCKER_TOKENS),
        "sampling_params": {"max_new_tokens": 1},
        "kairos": {"ttft_ms": BLOCKER_TTFT_MS},
    }
    with ThreadPoolExecutor(len(ttft_ms) + 1) as pool:
        blocked = pool.submit(send, cluster, blocker)
        wait_for(lambda: occupancy(cluster.prefill[0])["num_used_tokens"] > 0)
        requests = []
        for index in range(len(ttft_ms)):
            requests.append(pool.submit(request, index))
            wait_for(lambda: occupancy(cluster.prefill[0])["num_waiting_reqs"] == len(requests))
        assert not blocked.done(), "the blocker must outlast the arrivals"
        for future in (blocked, *requests):
            future.result()
    wait_idle(cluster)
    return finished


@on(KAIROS)
def test_feasible_requests_go_by_deadline(cluster: Cluster) -> None:
    assert prefill_order(cluster, PROMISED_MS) == [5, 4, 3, 2, 1, 0]


@on(KAIROS)
def test_a_hopeless_request_goes_behind_the_feasible_ones(cluster: Cluster) -> None:
    hopeless_ms = 3000  # the blocker takes longer
    assert prefill_order(cluster, [hopeless_ms, *PROMISED_MS]) == [6, 5, 4, 3, 2, 1, 0]


@on(OFF)
def test_upstream_takes_them_as_they_came(cluster: Cluster) -> None:
    assert kairos_state(cluster.prefill[0]) is None
    assert prefill_order(cluster, PROMISED_MS) == [0, 1, 2, 3, 4, 5]
