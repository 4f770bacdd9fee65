"""Skipping requests in decode steps changes the time of a token, not the token."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from kairos.cluster import Cluster
from support.adapters import LORA, load_adapter, write_adapter
from support.clusters import Config, on
from support.configs import KAIROS, RANDOM_SELECTION, SUPPORT
from support.pair import Streaming, fresh_prompt, kairos_state, send, wait_for, wait_idle

# Every 25th step retracts one.
RETRACT = (("SGLANG_TEST_RETRACT", "1"), ("SGLANG_TEST_RETRACT_INTERVAL", "25"))
RETRACTING = replace(RANDOM_SELECTION, env=(*RANDOM_SELECTION.env, *RETRACT))
RETRACTING_NO_OVERLAP = replace(
    RETRACTING, args=(*RANDOM_SELECTION.args, "--disable-overlap-schedule")
)
RETRACTING_RADIX = replace(
    RETRACTING,
    decode_args=(*RANDOM_SELECTION.decode_args, "--disaggregation-decode-enable-radix-cache"),
)
STEEP = Config(
    profile=str(SUPPORT / "steep_decode.json"),
    kairos=True,
    args=("--kairos-profile", str(SUPPORT / "steep_decode.json")),
)
DEVICE_TIMED = replace(KAIROS, env=(("SGLANG_ENABLE_METRICS_DEVICE_TIMER", "1"),))
ADAPTERS = replace(RANDOM_SELECTION, args=(*RANDOM_SELECTION.args, *LORA))

REQUESTS = 100


def decode(cluster: Cluster) -> dict[str, Any]:
    state = kairos_state(cluster.decode[0])
    assert state is not None
    return state["decode"]


def bodies() -> list[dict[str, Any]]:
    """Requests with logprobs, grammars and logit biases, which a batch carries along."""
    random = np.random.default_rng(23)
    made = []
    for i in range(REQUESTS):
        sampling: dict[str, Any] = {
            "temperature": 0,
            "max_new_tokens": int(random.integers(10, 30)),
            "ignore_eos": True,
        }
        if i % 10 == 3:
            sampling["regex"] = "(a|b|c|d|e){80}"
        if i % 10 == 6:
            sampling["logit_bias"] = {"50": 2.0, "60": -2.0}
        made.append(
            {
                "input_ids": random.integers(10, 1000, int(random.integers(20, 120))).tolist(),
                "sampling_params": sampling,
                "return_logprob": i % 4 == 0,
                "top_logprobs_num": 2 if i % 8 == 0 else 0,
            }
        )
    return made


Answer = tuple[list[int], list[float]]


def answer(cluster: Cluster, body: dict[str, Any]) -> Answer:
    response = send(cluster, body).decode
    assert response.status_code == 200, response.text
    result = response.json()
    logprobs = result["meta_info"].get("output_token_logprobs") or []
    return result["output_ids"], [entry[0] for entry in logprobs]


@pytest.fixture(scope="session")
def alone() -> list[Answer]:
    """Answers to `bodies`, sent one after the other, once they are known.

    A request that runs alone is never skipped.
    """
    return []


@on(RETRACTING, long=(RANDOM_SELECTION, RETRACTING_NO_OVERLAP, RETRACTING_RADIX))
def test_tokens_and_logprobs_are_those_of_requests_served_alone(
    cluster: Cluster, alone: list[Answer]
) -> None:
    requests = bodies()
    if not alone:
        alone += [answer(cluster, body) for body in requests]
    before = decode(cluster)
    with ExitStack() as stack, ThreadPoolExecutor(REQUESTS) as pool:
        answers = [pool.submit(answer, cluster, body) for body in requests]
        ended = [stack.enter_context(Streaming(cluster, 50, 300)) for _ in range(5)]
        wait_for(lambda: all(one.events >= 2 for one in ended), "their first tokens", 60)
        for one in ended[:3]:
            one.abort()
        for one in ended[3:]:
            one.disconnect()
        together = [future.result() for future in answers]
    for at, ((tokens, logprobs), (tokens_alone, logprobs_alone)) in enumerate(
        zip(together, alone, strict=True)
    ):
        assert tokens == tokens_alone, at
        assert np.allclose(logprobs, logprobs_alone, atol=1e-4), at
    after = decode(cluster)
    assert after["skips"] > before["skips"] + REQUESTS
    retracting = "SGLANG_TEST_RETRACT" in cluster.spec.env
    assert (after["retractions"] > before["retractions"]) is retracting
    wait_idle(cluster)
    assert decode(cluster)["skipped"] == 0


@on(long=(ADAPTERS,))
def test_skipped_requests_keep_their_adapter(cluster: Cluster, tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "other")):
        adapter = write_adapter(tmp_path / name, Path(cluster.spec.model), seed)
        load_adapter(cluster, name, adapter)
    prompts = [body["input_ids"] for body in bodies()[:8]]
    requests = [
        {
            "input_ids": prompt,
            "sampling_params": {"temperature": 0, "max_new_tokens": 30, "ignore_eos": True},
            "lora_path": name,
        }
        for prompt in prompts
        for name in (None, "one", "other")
    ]
    alone = [answer(cluster, body) for body in requests]
    before = decode(cluster)["skips"]
    with ThreadPoolExecutor(len(requests)) as pool:
        assert list(pool.map(lambda body: answer(cluster, body), requests)) == alone
    assert len({tuple(tokens) for tokens, _ in alone}) == len(requests), "adapters change nothing"
    assert decode(cluster)["skips"] > before + len(requests)
    wait_idle(cluster)


# Not where requests are retracted: upstream then loses the tokens that a penalty counts.
@on(RANDOM_SELECTION)
def test_requests_are_skipped_beside_ones_with_penalties(cluster: Cluster) -> None:
    random = np.random.default_rng(5)
    penalties: list[dict[str, Any]] = [
        {"frequency_penalty": 0.7, "presence_penalty": 0.3},
        {"repetition_penalty": 1.3},
        {"min_new_tokens": 30, "ignore_eos": False},
    ]
    requests = [
        {
            "input_ids": random.integers(10, 1000, 40).tolist(),
            "sampling_params": {
                "temperature": 0,
                "max_new_tokens": 40 + i,
                "ignore_eos": True,
                **(penalties[i // 4] if i % 4 == 0 else {}),
            },
        }
        for i in range(12)
    ]
    alone = [answer(cluster, body) for body in requests]
    before = decode(cluster)
    with ThreadPoolExecutor(len(requests)) as pool:
        assert list(pool.map(lambda body: answer(cluster, body), requests)) == alone
    after = decode(cluster)
    assert after["steps_with_skips"] > before["steps_with_skips"] + 20
    assert after["steps_skipping_was_off"] == before["steps_skipping_was_off"]
    wait_idle(cluster)


@on(RETRACTING, long=(RANDOM_SELECTION,))
@pytest.mark.parametrize("mode", ["in_place", "retract"])
def test_pause_loses_no_skipped_request(cluster: Cluster, mode: str) -> None:
    url = cluster.decode[0].url
    body = bodies()[1]
    body["sampling_params"]["max_new_tokens"] = 150
    alone = answer(cluster, body)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(answer, cluster, body) for _ in range(8)]
        try:
            wait_for(lambda: decode(cluster)["skipped"] > 0, "a skipped request")
            httpx.post(f"{url}/pause_generation", json={"mode": mode}).raise_for_status()
        finally:
            httpx.post(f"{url}/continue_generation", json={}).raise_for_status()
        assert [future.result() for future in answers] == [alone] * 8
    wait_idle(cluster)


@on(RETRACTING, long=(RANDOM_SELECTION,))
def test_skipped_requests_survive_a_flush_attempt_and_end_by_an_abort(
    cluster: Cluster,
) -> None:
    url = cluster.decode[0].url
    with ExitStack() as stack:
        open_ones = [stack.enter_context(Streaming(cluster, 50, 2_000)) for _ in range(8)]
        wait_for(lambda: decode(cluster)["skipped"] > 0, "a skipped request")
        assert httpx.post(f"{url}/flush_cache").status_code == 400, "their KV is in use"
        seen = [one.made for one in open_ones]
        wait_for(
            lambda: all(one.made > was for one, was in zip(open_ones, seen, strict=True)),
            "a token for each",
        )
        wait_for(lambda: decode(cluster)["skipped"] > 0, "a skipped request")
        everything = {"rid": "", "abort_all": True}
        httpx.post(f"{url}/abort_request", json=everything).raise_for_status()
        for one in open_ones:
            one.wait_finished()
            assert one.made < 2_000
    wait_idle(cluster)
    assert decode(cluster)["skipped"] == 0


@on(long=(RANDOM_SELECTION,))
@pytest.mark.parametrize("paused", [False, True])
def test_skipped_requests_survive_an_update_of_weights(cluster: Cluster, paused: bool) -> None:
    """Upstream loads weights when all requests have ended, and at once on a paused server.

    On the paused server it answers that the cache still holds values of the old weights.
    """

    def post(path: str, fields: dict[str, Any]) -> httpx.Response:
        return httpx.post(f"{cluster.decode[0].url}/{path}", json=fields, timeout=60)

    info = httpx.get(f"{cluster.decode[0].url}/model_info").json()
    update = {"model_path": info["model_path"]}
    body = bodies()[1]
    body["sampling_params"]["max_new_tokens"] = 150
    alone = answer(cluster, body)
    with ThreadPoolExecutor(9) as pool:
        answers = [pool.submit(answer, cluster, body) for _ in range(8)]
        wait_for(lambda: decode(cluster)["skipped"] > 0, "a skipped request")
        if paused:
            post("pause_generation", {"mode": "in_place"}).raise_for_status()
        updated = pool.submit(post, "update_weights_from_disk", update)
        if paused:
            assert not updated.result().json()["success"]
            post("continue_generation", {}).raise_for_status()
        assert [one.result() for one in answers] == [alone] * 8
        assert paused or updated.result().json()["success"], updated.result().text
    wait_idle(cluster)
    assert answer(cluster, body) == alone


def streams(
    cluster: Cluster,
    stack: ExitStack,
    count: int,
    tpot_ms: float,
    tokens: int = 1_000,
    new_tokens: int = 800,
) -> list[Streaming]:
    slo = {"ttft_ms": 60_000.0, "tpot_ms": tpot_ms}
    made = (Streaming(cluster, tokens, new_tokens, slo=slo) for _ in range(count))
    return [stack.enter_context(one) for one in made]


@on(STEEP)
def test_requests_with_time_to_spare_are_skipped_for_urgent_ones(cluster: Cluster) -> None:
    # A step of all takes about 17 ms, and one of the urgent requests 6 ms. The relaxed requests,
    # which are long, bank time first; none of them ends before the urgent ones.
    before = decode(cluster)
    with ExitStack() as stack:
        relaxed = streams(cluster, stack, 8, 200.0, 6_000, 2_500)
        wait_for(lambda: all(one.events > 40 for one in relaxed), "banked time", 60)
        urgent = streams(cluster, stack, 8, 10.0, 200)
        wait_for(lambda: decode(cluster)["skips"] > before["skips"], "skipping", 30)
        for one in urgent:
            one.wait_finished()
        for one in relaxed:
            one.abort()
            one.wait_finished()
    assert decode(cluster)["steps_with_skips"] > before["steps_with_skips"]
    wait_idle(cluster)


@on(STEEP)
def test_infeasible_requests_still_get_tokens(cluster: Cluster) -> None:
    # No step takes 0.1 ms, so these requests are infeasible and get only the time that the others
    # leave: a step of the others takes 6 ms, and one of all 9 ms. The starvation bound is five
    # seconds.
    before = decode(cluster)["steps_with_skips"]
    with ExitStack() as stack:
        infeasible = streams(cluster, stack, 2, 0.1, 6_000)
        others = streams(cluster, stack, 8, 8.0, 200, 1_000)
        wait_for(
            lambda: all(one.events > 1 for one in infeasible),
            "the first tokens of infeasible requests",
            60,
        )
        seen = [one.events for one in infeasible]
        time.sleep(6.5)
        assert all(one.events > was for one, was in zip(infeasible, seen, strict=True))
        assert decode(cluster)["steps_with_skips"] > before, "they were never skipped"
        for one in [*others, *infeasible]:
            one.abort()
            one.wait_finished()
    wait_idle(cluster)


def decode_steps(cluster: Cluster, count: int) -> dict[str, Any]:
    """The server's figures after about `count` further steps, of which many are measured."""
    body = {
        "input_ids": fresh_prompt(500),
        "sampling_params": {"max_new_tokens": count, "ignore_eos": True},
    }
    before = decode(cluster)["steps_measured"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: send(cluster, body), range(8)))
    state = decode(cluster)
    assert state["steps_measured"] > before + 60
    wait_idle(cluster)
    return state


@on(KAIROS, long=(DEVICE_TIMED,))
def test_steps_are_measured(cluster: Cluster) -> None:
    # All requests have time to spare, so one step in sixteen is learned from.
    state = decode_steps(cluster, 1_200)
    # The emulated accelerator follows the profile that predictions start from.
    assert 0.8 < state["measured_over_predicted"]["p50"] < 1.25
    assert state["device_timer"] is ("SGLANG_ENABLE_METRICS_DEVICE_TIMER" in cluster.spec.env)


@on(RETRACTING, long=(RANDOM_SELECTION,))
def test_steps_are_learned(cluster: Cluster) -> None:
    # The profile predicts 0.1 s, and the model takes a small part of it.
    assert 0.6 < decode_steps(cluster, 300)["measured_over_predicted"]["p50"] < 1.6
