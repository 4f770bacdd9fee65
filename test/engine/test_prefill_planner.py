"""Batches planned by urgency: overtaking between chunks, and nothing lost or changed by it."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from kairos.cluster import Cluster
from support.clusters import Config, on
from support.configs import DEFAULT_SLO, KAIROS, OFF
from support.pair import (
    Answer,
    Streaming,
    fresh_prompt,
    kairos_state,
    occupancy,
    send,
    wait_for,
    wait_idle,
)

# 20,000 tokens/s and attention: about seven seconds, infeasible against one.
LONG = 80_000
INFEASIBLE = {"ttft_ms": 1000}
URGENT = {"ttft_ms": 60_000}

NO_OVERLAP = replace(KAIROS, args=(*KAIROS.args, "--disable-overlap-schedule"))
# Real weights, chunks of 256 tokens.
KAIROS_CPU = Config(
    platform="cpu", kairos=True, args=(*DEFAULT_SLO, "--chunked-prefill-size", "256")
)
# Memory for a long prompt and two short ones.
KAIROS_CPU_SMALL = replace(KAIROS_CPU, prefill_args=("--max-total-tokens", "4500"))


def body(ids: list[int], slo: dict[str, float], new_tokens: int = 2) -> dict[str, Any]:
    params = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True}
    return {"input_ids": ids, "sampling_params": params, "kairos": slo}


def planner(cluster: Cluster) -> dict[str, Any]:
    state = kairos_state(cluster.prefill[0])
    assert state is not None
    assert isinstance(state["planner"], dict), state["planner"]
    return state["planner"]


def started(cluster: Cluster) -> bool:
    return occupancy(cluster.prefill[0])["num_used_tokens"] > 0


def race(cluster: Cluster, tokens: int) -> tuple[float, float]:
    """Seconds to the answers of an infeasible long prompt and of one of `tokens` sent later."""

    def timed(future: "Future[Answer]") -> float:
        assert future.result().decode.status_code == 200
        return time.monotonic() - begin

    with ThreadPoolExecutor(4) as pool:
        begin = time.monotonic()
        long = pool.submit(send, cluster, body(fresh_prompt(LONG), INFEASIBLE))
        long_s = pool.submit(timed, long)
        wait_for(lambda: started(cluster))
        short_s = pool.submit(timed, pool.submit(send, cluster, body(fresh_prompt(tokens), URGENT)))
        return long_s.result(), short_s.result()


@on(KAIROS, long=(NO_OVERLAP,))
def test_a_short_request_joins_the_batches_of_a_long_prompt(cluster: Cluster) -> None:
    long_s, short_s = race(cluster, 100)
    assert short_s < long_s
    wait_idle(cluster)


@on(KAIROS, long=(NO_OVERLAP,))
def test_an_urgent_request_of_ten_chunks_overtakes_a_long_prompt(cluster: Cluster) -> None:
    before = planner(cluster)["overtakes"]
    long_s, short_s = race(cluster, 20_000)
    assert short_s < long_s
    assert planner(cluster)["overtakes"] > before
    wait_idle(cluster)


@on(OFF)
def test_upstream_serves_it_last(cluster: Cluster) -> None:
    long_s, short_s = race(cluster, 100)
    # It may share the last chunk; then two threads get their answers in either order.
    assert short_s > 0.98 * long_s


@on(KAIROS)
def test_overtaking_nests(cluster: Cluster) -> None:
    with ThreadPoolExecutor(3) as pool:
        # Together they leave free the decode memory that is kept for tight deadlines.
        answers = [pool.submit(send, cluster, body(fresh_prompt(50_000), INFEASIBLE))]
        wait_for(lambda: started(cluster))
        for ttft_ms in (50_000, 20_000):
            prompt = fresh_prompt(40_000)
            answers.append(pool.submit(send, cluster, body(prompt, {"ttft_ms": ttft_ms})))
            wait_for(lambda: planner(cluster)["preempted"] >= len(answers) - 1)
        assert all(answer.result().decode.status_code == 200 for answer in answers)
    assert planner(cluster)["max_preempted"] >= 2
    wait_idle(cluster)


@on(KAIROS, long=(NO_OVERLAP,))
@pytest.mark.parametrize("by", ["rid", "disconnect"])
def test_a_preempted_prompt_can_be_aborted(cluster: Cluster, by: str) -> None:
    with Streaming(cluster, LONG, 2, slo=INFEASIBLE) as long:
        wait_for(lambda: started(cluster))
        with Streaming(cluster, 40_000, 2, slo=URGENT) as urgent:
            wait_for(lambda: planner(cluster)["preempted"] == 1)
            if by == "rid":
                long.abort()
                long.wait_finished()
            else:
                long.disconnect()
            wait_for(lambda: planner(cluster)["preempted"] == 0, "the preempted prompt to end", 5)
            assert urgent.events == 0, "it was aborted while preempted"
            urgent.wait_finished()
            assert urgent.made == 2
    wait_idle(cluster)


@on(KAIROS, long=(NO_OVERLAP,))
def test_a_preempted_prompt_ends_when_all_requests_are_aborted(cluster: Cluster) -> None:
    with Streaming(cluster, LONG, 2, slo=INFEASIBLE) as long:
        wait_for(lambda: started(cluster))
        with Streaming(cluster, 40_000, 2, slo=URGENT) as urgent:
            wait_for(lambda: planner(cluster)["preempted"] == 1)
            for server in (*cluster.decode, *cluster.prefill):
                everything = {"rid": "", "abort_all": True}
                httpx.post(f"{server.url}/abort_request", json=everything).raise_for_status()
            long.wait_finished()
            urgent.wait_finished()
            assert long.made == urgent.made == 0
    wait_idle(cluster)
    assert planner(cluster)["preempted"] == 0
    assert send(cluster, body(fresh_prompt(100), URGENT)).decode.status_code == 200


@on(KAIROS)
def test_a_preempted_prompt_outlasts_a_pause_and_an_attempt_to_flush(cluster: Cluster) -> None:
    url = cluster.prefill[0].url
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(send, cluster, body(fresh_prompt(LONG), INFEASIBLE))]
        wait_for(lambda: started(cluster))
        answers.append(pool.submit(send, cluster, body(fresh_prompt(40_000), URGENT)))
        wait_for(lambda: planner(cluster)["preempted"] == 1)
        assert httpx.post(f"{url}/flush_cache").status_code == 400, "its KV is in use"
        httpx.post(f"{url}/pause_generation", json={"mode": "in_place"}).raise_for_status()
        try:
            assert planner(cluster)["preempted"] == 1
            assert httpx.post(f"{url}/flush_cache").status_code == 400, "its KV is in use"
        finally:
            httpx.post(f"{url}/continue_generation", json={}).raise_for_status()
        for answer in answers:
            assert len(answer.result().decode.json()["output_ids"]) == 2
    wait_idle(cluster)


@on(KAIROS)
def test_everything_is_given_back_after_a_burst(cluster: Cluster) -> None:
    random = np.random.default_rng(3)
    with ThreadPoolExecutor(24) as pool:
        answers = [
            pool.submit(send, cluster, body(fresh_prompt(int(tokens)), {"ttft_ms": float(ttft)}, 3))
            for tokens, ttft in zip(
                random.integers(50, 12_000, 24), random.integers(200, 20_000, 24), strict=True
            )
        ]
        for answer in answers:
            assert len(answer.result().decode.json()["output_ids"]) == 3
    wait_idle(cluster)
    assert planner(cluster)["preempted"] == 0


def tokens(cluster: Cluster, ids: list[int], slo: dict[str, float]) -> tuple[list[int], float]:
    """Output and the first token's logprob, which every token of the prompt has a part in."""
    answer = send(cluster, {**body(ids, slo, 24), "return_logprob": True})
    assert answer.decode.status_code == 200
    result = answer.decode.json()
    return result["output_ids"], result["meta_info"]["output_token_logprobs"][0][0]


@on(KAIROS_CPU)
def test_tokens_of_overtaken_and_overtaking_are_those_of_an_undisturbed_run(
    cluster: Cluster,
) -> None:
    random = np.random.default_rng(11)
    long = random.integers(10, 1000, 3000).tolist()
    short = random.integers(10, 1000, 700).tolist()

    before = planner(cluster)
    with ThreadPoolExecutor(2) as pool:
        overtaken = pool.submit(tokens, cluster, long, {"ttft_ms": 600_000})
        wait_for(lambda: started(cluster))
        overtaking = pool.submit(tokens, cluster, short, URGENT)
        disturbed = overtaken.result(), overtaking.result()
    assert planner(cluster)["overtakes"] > before["overtakes"]
    assert planner(cluster)["preemptions"] > before["preemptions"]
    wait_idle(cluster)
    # The same chunks again, from the radix cache.
    cached = tokens(cluster, long, URGENT), tokens(cluster, short, URGENT)
    assert [ids for ids, _ in cached] == [ids for ids, _ in disturbed]
    # And computed anew. Other chunks sum in another order, so near-ties may flip later tokens.
    wait_idle(cluster)
    httpx.post(f"{cluster.prefill[0].url}/flush_cache").raise_for_status()
    for (_, anew), (_, logprob) in zip(
        (tokens(cluster, long, URGENT), tokens(cluster, short, URGENT)), disturbed, strict=True
    ):
        assert anew == pytest.approx(logprob, abs=1e-3)


@on(long=(KAIROS_CPU_SMALL,))
def test_a_preempted_prompt_outlasts_the_eviction_of_what_is_cached(cluster: Cluster) -> None:
    random = np.random.default_rng(31)
    old, long = (random.integers(10, 1000, 3000).tolist() for _ in range(2))
    shorts = [random.integers(10, 1000, 700).tolist() for _ in range(3)]
    tokens(cluster, old, URGENT)  # leaves most of the memory to the cache
    wait_idle(cluster)
    before = planner(cluster)
    with ThreadPoolExecutor(4) as pool:
        overtaken = pool.submit(tokens, cluster, long, {"ttft_ms": 600_000})
        wait_for(lambda: started(cluster))
        overtaking = [pool.submit(tokens, cluster, short, URGENT) for short in shorts]
        disturbed = [overtaken.result(), *(one.result() for one in overtaking)]
    after = planner(cluster)
    assert after["preemptions"] > before["preemptions"]
    assert after["recomputed"] == before["recomputed"], "the cache was to make room"
    wait_idle(cluster)
    again = send(cluster, body(old, URGENT)).prefill.json()
    assert again["meta_info"]["cached_tokens"] < 256, "nothing was evicted"
    wait_idle(cluster)
    httpx.post(f"{cluster.prefill[0].url}/flush_cache").raise_for_status()
    for ids, (_, logprob) in zip([long, *shorts], disturbed, strict=True):
        assert tokens(cluster, ids, URGENT)[1] == pytest.approx(logprob, abs=1e-3)
    wait_idle(cluster)
