"""Order in which a prefill server takes what waits."""

import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from kairos.cluster import Cluster
from support.clusters import on
from support.configs import KAIROS, OFF
from support.pair import kairos_state, send, wait_idle

# The profile prefills 20,000 tokens/s in chunks of 2,048: the blocker keeps the server busy for
# about two seconds while the others queue up.
BLOCKER_TOKENS = 40_000
TOKENS = 1500
PROMISED_MS = [60_000 - 1000 * rank for rank in range(6)]  # latest deadline first


def fresh_prompt(tokens: int) -> list[int]:
    """A prompt of which nothing is cached."""
    return [*(20 + secrets.randbelow(60) for _ in range(8)), *[20] * (tokens - 8)]


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
        "kairos": {"ttft_ms": 1},
    }
    with ThreadPoolExecutor(len(ttft_ms) + 1) as pool:
        blocked = pool.submit(send, cluster, blocker)
        time.sleep(0.5)
        requests = []
        for index in range(len(ttft_ms)):
            requests.append(pool.submit(request, index))
            time.sleep(0.05)
        for future in (blocked, *requests):
            future.result()
    wait_idle(cluster)
    return finished


@on(KAIROS)
def test_feasible_requests_go_by_deadline(cluster: Cluster) -> None:
    assert prefill_order(cluster, PROMISED_MS) == [5, 4, 3, 2, 1, 0]


@on(KAIROS)
def test_a_hopeless_request_goes_behind_the_feasible_ones(cluster: Cluster) -> None:
    assert prefill_order(cluster, [1, *PROMISED_MS]) == [6, 5, 4, 3, 2, 1, 0]


@on(KAIROS)
def test_passes_are_counted(cluster: Cluster) -> None:
    prefill_order(cluster, PROMISED_MS)
    state = kairos_state(cluster.prefill[0])
    assert state is not None
    assert state["prefill"]["ordered_passes"] > 0
    assert kairos_state(cluster.decode[0])["prefill"] is None


@on(OFF)
def test_upstream_takes_them_as_they_came(cluster: Cluster) -> None:
    assert kairos_state(cluster.prefill[0]) is None
    assert prefill_order(cluster, PROMISED_MS) == [0, 1, 2, 3, 4, 5]
