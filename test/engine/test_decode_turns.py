"""On a server that is not disaggregated, prompts do not starve decode."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx

from kairos.cluster import Cluster
from support.clusters import on
from support.configs import KAIROS
from support.pair import fresh_prompt, kairos_state, load, wait_for

SINGLE = replace(KAIROS, prefill=0, decode=0)


def generate(cluster: Cluster, tokens: int, new_tokens: int, slo: dict[str, float]) -> Any:
    body = {
        "input_ids": fresh_prompt(tokens),
        "sampling_params": {"max_new_tokens": new_tokens, "ignore_eos": True},
        "kairos": slo,
    }
    return httpx.post(f"{cluster.url}/generate", json=body, timeout=120).raise_for_status().json()


@on(long=(SINGLE,))
def test_running_request_gets_tokens_between_the_chunks_of_prompts(cluster: Cluster) -> None:
    """Under upstream it waits for the last chunk."""
    with ThreadPoolExecutor(5) as pool:
        (server,) = cluster.servers
        prompts = [pool.submit(generate, cluster, 40_000, 1, {})]
        wait_for(lambda: load(server)["num_used_tokens"] > 0)
        running = pool.submit(generate, cluster, 100, 40, {"ttft_ms": 100, "tpot_ms": 30})
        prompts += [pool.submit(generate, cluster, 40_000, 1, {}) for _ in range(3)]
        wait_for(lambda: load(server)["num_waiting_reqs"] == 4)
        assert running.result()["meta_info"]["completion_tokens"] == 40
        assert not all(prompt.done() for prompt in prompts)
        for prompt in prompts:
            assert prompt.result()["meta_info"]["completion_tokens"] == 1
    state = kairos_state(server)
    assert state is not None
    assert state["decode_turns"]["taken"] > 30
