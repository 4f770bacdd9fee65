"""Memory of a decode server: a prompt that does not fit blocks no other prompt."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from kairos.cluster import Cluster
from support.clusters import on
from support.configs import KAIROS_TIGHT
from support.pair import Streaming, fresh_prompt, kairos_state, occupancy, send, wait_for, wait_idle


def preallocation(cluster: Cluster) -> dict[str, Any]:
    state = kairos_state(cluster.decode[0])
    assert state is not None
    return state["decode"]["preallocation"]


@on(KAIROS_TIGHT)
def test_short_prompt_bypasses_one_that_does_not_fit(cluster: Cluster) -> None:
    before = preallocation(cluster)["skips"]

    def body(tokens: int) -> dict[str, Any]:
        params = {"max_new_tokens": 4, "ignore_eos": True}
        return {
            "input_ids": fresh_prompt(tokens),
            "sampling_params": params,
            "kairos": {"ttft_ms": 60_000},
        }

    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        resident = stack.enter_context(Streaming(cluster, 15_000, 2_000))
        wait_for(lambda: resident.events > 0, "the resident's first token")
        long = pool.submit(send, cluster, body(20_000))
        wait_for(lambda: occupancy(cluster.decode[0])["decode_prealloc_queue_reqs"] == 1)
        short = pool.submit(send, cluster, body(500)).result()
        assert len(short.decode.json()["output_ids"]) == 4
        assert not long.done()
        assert preallocation(cluster)["skips"] > before
        resident.abort()
        assert len(long.result().decode.json()["output_ids"]) == 4
    wait_idle(cluster)


@on(KAIROS_TIGHT)
def test_burst_beyond_the_memory_is_served_completely(cluster: Cluster) -> None:
    def one(at: int) -> int:
        body = {
            "input_ids": fresh_prompt(500 + 150 * at),
            "sampling_params": {"max_new_tokens": 200, "ignore_eos": True},
            # Every third prompt is infeasible.
            "kairos": {"ttft_ms": 20.0 if at % 3 == 0 else 60_000.0},
        }
        response = send(cluster, body).decode
        assert response.status_code == 200, response.text
        return len(response.json()["output_ids"])

    with ThreadPoolExecutor(30) as pool:
        assert list(pool.map(one, range(30))) == [200] * 30
    assert preallocation(cluster)["granted_infeasible"] > 0
    wait_idle(cluster)
