"""Planned prefill under upstream's other modes: prompts that are computed before their handshake,
with decode memory allocated after prefill or with optimistic prefill, and priorities. Pause,
flush and learned models."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from tempfile import gettempdir
from typing import Any

import httpx
import numpy as np
import pytest

from kairos.cluster import Cluster
from support.clusters import Config, on
from support.configs import DEFAULT_SLO, KAIROS
from support.pair import (
    Streaming,
    fresh_prompt,
    kairos_state,
    occupancy,
    room,
    send,
    wait_for,
    wait_idle,
)

LONG = 80_000
INFEASIBLE = {"ttft_ms": 1000}
URGENT = {"ttft_ms": 60_000}

MODES = replace(
    KAIROS,
    args=(
        *KAIROS.args,
        "--enable-priority-scheduling",
        "--enable-metrics",
        *("--disaggregation-decode-allocation-policy", "prefill_complete"),
        *("--kairos-state-dir", f"{gettempdir()}/kairos-test-{room():x}"),
    ),
)

# Real weights, chunks of 256 tokens. Upstream's own switch has every first attempt end without a
# handshake, so that its KV is given back and the prompt comes again.
OPTIMISTIC = Config(
    platform="cpu",
    kairos=True,
    args=(*DEFAULT_SLO, "--chunked-prefill-size", "256", "--optimistic-prefill-attempts", "2"),
    env=(("SGLANG_TEST_FORCE_OPTIMISTIC_PREFILL_RETRY_PROB", "1"),),
)


def body(tokens: int, slo: dict[str, float], **fields: Any) -> dict[str, Any]:
    params = {"temperature": 0, "max_new_tokens": 2, "ignore_eos": True}
    return {"input_ids": fresh_prompt(tokens), "sampling_params": params, "kairos": slo, **fields}


def planner(cluster: Cluster) -> dict[str, Any]:
    state = kairos_state(cluster.prefill[0])
    assert state is not None
    assert isinstance(state["planner"], dict), state["planner"]
    return state["planner"]


def started(cluster: Cluster) -> bool:
    return occupancy(cluster.prefill[0])["num_used_tokens"] > 0


def post(cluster: Cluster, path: str, fields: dict[str, Any] | None = None) -> httpx.Response:
    return httpx.post(f"{cluster.prefill[0].url}/{path}", json=fields or {}, timeout=30)


@on(MODES)
def test_a_prompt_without_decode_memory_is_overtaken_and_completes(cluster: Cluster) -> None:
    before = planner(cluster)
    with ThreadPoolExecutor(4) as pool:
        finished: list[str] = []

        def answered(name: str, request: dict[str, Any]) -> list[int]:
            ids: list[int] = send(cluster, request).decode.json()["output_ids"]
            finished.append(name)
            return ids

        long = pool.submit(answered, "long", body(LONG, INFEASIBLE))
        wait_for(lambda: started(cluster))
        others = [pool.submit(answered, f"{n}", body(20_000, URGENT)) for n in range(2)]
        assert [len(answer.result()) for answer in (long, *others)] == [2, 2, 2]
    after = planner(cluster)
    assert finished[-1] == "long"
    assert after["preemptions"] > before["preemptions"]
    assert after["overtakes"] >= before["overtakes"] + 2
    wait_idle(cluster)


@on(MODES)
def test_priority_goes_first_whatever_the_deadlines(cluster: Cluster) -> None:
    finished: list[int] = []
    with ThreadPoolExecutor(8) as pool:

        def answered(priority: int, tokens: int, slo: dict[str, float]) -> None:
            assert send(cluster, body(tokens, slo, priority=priority)).decode.status_code == 200
            finished.append(priority)

        blocker = pool.submit(answered, 9, 60_000, {"ttft_ms": 20_000})
        wait_for(lambda: started(cluster))
        # The later the deadline, the higher the priority. Chunks are of 2,048 tokens: the next
        # prompt is through ten later, which threads that wait for answers do not mix up.
        rest = []
        for priority in (1, 2, 3):
            slo = {"ttft_ms": 20_000.0 * priority}
            rest.append(pool.submit(answered, priority, 20_000, slo))
        wait_for(lambda: occupancy(cluster.prefill[0])["num_waiting_reqs"] == 3)
        for future in (blocker, *rest):
            future.result()
    assert finished == [9, 3, 2, 1]
    wait_idle(cluster)


@on(MODES)
def test_preempted_prompts_outlast_a_pause_and_refuse_a_flush(cluster: Cluster) -> None:
    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(send, cluster, body(LONG, INFEASIBLE))
        wait_for(lambda: started(cluster))
        urgent = pool.submit(send, cluster, body(40_000, URGENT))
        wait_for(lambda: planner(cluster)["preempted"] == 1)
        for mode in ("in_place", "retract"):
            assert post(cluster, "pause_generation", {"mode": mode}).status_code == 200
            assert post(cluster, "flush_cache").status_code != 200
            time.sleep(0.3)
            assert not urgent.done()
            assert post(cluster, "continue_generation").status_code == 200
        for answer in (long, urgent):
            assert len(answer.result().decode.json()["output_ids"]) == 2
    wait_idle(cluster)
    assert post(cluster, "flush_cache").status_code == 200


@on(long=(MODES,))
@pytest.mark.parametrize("paused", [False, True])
def test_preempted_prompts_outlast_an_update_of_weights(cluster: Cluster, paused: bool) -> None:
    """Upstream waits for requests to end before it loads; on a paused server it loads at once and
    says that the cache still holds KV of the old weights."""
    info = httpx.get(f"{cluster.prefill[0].url}/model_info", timeout=30).json()
    update = {"model_path": info["model_path"]}
    with ThreadPoolExecutor(3) as pool:
        long = pool.submit(send, cluster, body(LONG, INFEASIBLE))
        wait_for(lambda: started(cluster))
        urgent = pool.submit(send, cluster, body(40_000, URGENT))
        wait_for(lambda: planner(cluster)["preempted"] == 1)
        if paused:
            assert post(cluster, "pause_generation", {"mode": "in_place"}).status_code == 200
        updated = pool.submit(post, cluster, "update_weights_from_disk", update)
        if paused:
            assert not updated.result().json()["success"]
            assert post(cluster, "continue_generation").status_code == 200
        for answer in (long, urgent):
            assert len(answer.result().decode.json()["output_ids"]) == 2
        assert paused or updated.result().json()["success"], updated.result().text
    wait_idle(cluster)
    assert post(cluster, "flush_cache").status_code == 200


@on(MODES)
def test_a_preempted_prompt_without_decode_memory_can_be_aborted(cluster: Cluster) -> None:
    with Streaming(cluster, LONG, 2, slo=INFEASIBLE) as long:
        wait_for(lambda: started(cluster))
        with Streaming(cluster, 40_000, 2, slo=URGENT) as urgent:
            wait_for(lambda: planner(cluster)["preempted"] == 1)
            long.abort()
            long.wait_finished()
            wait_for(lambda: planner(cluster)["preempted"] == 0, "the preempted prompt to end", 5)
            urgent.wait_finished()
            assert urgent.events >= 2
    wait_idle(cluster)


@on(MODES)
def test_rows_tokens_and_locks_are_back_after_anything(cluster: Cluster) -> None:
    """Arrivals, aborts, disconnects, pauses, and more prompts than the cache holds."""
    dice = np.random.default_rng(17)
    plans = [
        (int(tokens), float(ttft_ms), str(end), float(after_s), float(start_s))
        for tokens, ttft_ms, end, after_s, start_s in zip(
            np.minimum(dice.lognormal(8.3, 1.2, 32).astype(int) + 20, 40_000),
            dice.integers(200, 20_000, 32),
            dice.choice(["finish", "finish", "abort", "disconnect"], 32),
            dice.uniform(0.0, 2.5, 32),
            dice.uniform(0.0, 4.0, 32),
            strict=True,
        )
    ]

    def live(plan: tuple[int, float, str, float, float]) -> None:
        tokens, ttft_ms, end, after_s, start_s = plan
        time.sleep(start_s)
        with Streaming(cluster, tokens, 3, slo={"ttft_ms": ttft_ms}) as request:
            if end == "finish":
                request.wait_finished()
                assert request.made == 3
                return
            time.sleep(after_s)
            if end == "abort":
                request.abort()
                request.wait_finished()

    with ThreadPoolExecutor(len(plans)) as pool:
        lives = [pool.submit(live, plan) for plan in plans]
        for mode in ("in_place", "retract"):
            time.sleep(1.2)
            assert post(cluster, "pause_generation", {"mode": mode}).status_code == 200
            time.sleep(0.2)
            assert post(cluster, "continue_generation").status_code == 200
        for each in lives:
            each.result()
    wait_idle(cluster)
    assert planner(cluster)["preempted"] == 0
    # Upstream checks its pools against the cache when it flushes and when idle.
    assert post(cluster, "flush_cache").status_code == 200


@on(long=(OPTIMISTIC,))
def test_prompts_computed_before_their_handshake_keep_their_tokens(cluster: Cluster) -> None:
    random = np.random.default_rng(29)
    prompts = [random.integers(10, 1000, length).tolist() for length in (3000, 700, 500, 1500)]

    def tokens(ids: list[int], slo: dict[str, float]) -> list[int]:
        params = {"temperature": 0, "max_new_tokens": 16, "ignore_eos": True}
        request = {"input_ids": ids, "sampling_params": params, "kairos": slo}
        output: list[int] = send(cluster, request).decode.json()["output_ids"]
        return output

    before = planner(cluster)
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = [pool.submit(tokens, prompts[0], {"ttft_ms": 600_000})]
        wait_for(lambda: started(cluster))
        answers += [pool.submit(tokens, ids, URGENT) for ids in prompts[1:]]
        disturbed = [answer.result() for answer in answers]
    after = planner(cluster)
    assert after["preemptions"] > before["preemptions"]
    assert after["overtakes"] > before["overtakes"]
    wait_idle(cluster)
    assert planner(cluster)["preempted"] == 0
    # The same chunks again, from the radix cache.
    assert [tokens(ids, URGENT) for ids in prompts] == disturbed
    wait_idle(cluster)
    # Upstream compares its pools with the cache when it flushes.
    assert post(cluster, "flush_cache").status_code == 200


@on(MODES)
def test_batches_are_measured(cluster: Cluster) -> None:
    assert send(cluster, body(3000, URGENT)).decode.status_code == 200
    wait_idle(cluster)
    figures = planner(cluster)
    assert figures["batches_measured"] > 0
    assert figures["prediction_ratio"] > 0.5  # the emulation follows the profile


@on(MODES)
def test_health_is_in_server_info_and_in_metrics(cluster: Cluster) -> None:
    test_a_prompt_without_decode_memory_is_overtaken_and_completes(cluster)
    figures = planner(cluster)
    served = httpx.get(f"{cluster.prefill[0].url}/metrics", timeout=30).text
    values = {
        row.split("{")[0]: float(row.split()[-1])
        for row in served.splitlines()
        if row.startswith("kairos:prefill_")
    }
    for name in ("overtakes", "preemptions", "demotions", "starvation_grants"):
        assert values[f"kairos:prefill_{name}_total"] == figures[name]
    assert values["kairos:prefill_prediction_ratio"] == figures["prediction_ratio"]
    assert figures["overtakes"] > 0
