"""Servers with data-parallel attention.

Real weights give the tokens of a server without it. In modelled time every step of a server begins
with the last of its ranks and lasts as long as the slowest one. Times are compared with each other
and with lower bounds: a busy machine makes events later, and no event may be earlier.
"""

import os
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from kairos.cluster import Cluster, DpAttention, ServerDiedError
from kairos.latency import load_profile
from kairos_emulation.device_trace import DeviceRecord, read_device_trace
from support.clusters import ClusterPool, Config, on
from support.configs import DEFAULT_SLO, RANDOM_SELECTION
from support.pair import fresh_prompt, send, wait_for, wait_idle

NEW_TOKENS = 40
LENGTHS = (30, 90, 200, 255, 300, 520, 700, 900)
# 256 tokens a rank; upstream divides the flag by the ranks.
RANKS = Config(
    platform="cpu", dp_attention=DpAttention(2, 2), args=("--chunked-prefill-size", "512")
)
ONE = Config(platform="cpu", args=("--chunked-prefill-size", "256"))
# Each rank skips about half of its requests in every step, chosen at random.
KAIROS = replace(
    RANDOM_SELECTION, dp_attention=RANKS.dp_attention, args=(*DEFAULT_SLO, *RANKS.args)
)
TRACE = Path(tempfile.gettempdir()) / f"kairos-ranks-{os.getpid()}.jsonl"
PROFILE = Path(__file__).parent.parent / "support" / "long_context.json"
EMULATED = Config(
    profile=str(PROFILE),
    dp_attention=DpAttention(2, 2),
    env=(("KAIROS_EMULATION_TRACE", str(TRACE)),),
)
KAIROS_EMULATED = replace(
    EMULATED, kairos=True, env=(), args=(*DEFAULT_SLO, "--kairos-profile", str(PROFILE))
)
LONG_TOKENS = 20_000
ROUNDING_S = 1e-6


@pytest.fixture(scope="module", autouse=True)
def _no_trace_left() -> Iterator[None]:
    yield
    TRACE.unlink(missing_ok=True)


def outputs(cluster: Cluster) -> list[tuple[int, list[int]]]:
    """Return the rank of the decode leg and the tokens of all prompts, sent together."""

    def generate(ids: list[int]) -> tuple[int, list[int]]:
        body = {
            "input_ids": ids,
            "sampling_params": {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True},
        }
        response = send(cluster, body).decode
        assert response.status_code == 200, response.text
        answer = response.json()
        return answer["meta_info"].get("dp_rank", 0), answer["output_ids"]

    random = np.random.default_rng(7)
    prompts = [random.integers(10, 1000, size=length).tolist() for length in LENGTHS]
    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(generate, prompts))


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    """The tokens of servers without ranks, once they are known."""
    return []


@on(ONE, KAIROS, long=(RANKS,))
def test_tokens_equal_those_of_servers_without_ranks(
    cluster: Cluster, expected: list[list[int]]
) -> None:
    answers = outputs(cluster)
    wait_idle(cluster)
    tokens = [ids for _, ids in answers]
    if not expected:
        expected += tokens
    else:
        assert {rank for rank, _ in answers} == {0, 1}
    assert tokens == expected


@on(KAIROS)
def test_ranks_skip_requests_and_know_each_other(cluster: Cluster) -> None:
    before = [rank["steps_with_skips"] for rank in ranks(cluster)]
    outputs(cluster)
    wait_idle(cluster)
    after = ranks(cluster)
    assert [rank["ranks"]["rank"] for rank in after] == [0, 1]
    assert planning(cluster), "the prefill ranks plan their batches"
    for rank, was in zip(after, before, strict=True):
        assert rank["skipping"] == "on"
        assert rank["steps_with_skips"] > was
        assert len(rank["ranks"]["requests"]) == 2


def planning(cluster: Cluster) -> bool:
    """Whether every rank of the prefill server plans its batches and has measured some."""
    info = httpx.get(f"{cluster.prefill[0].url}/server_info", timeout=60).json()
    planners = [state["kairos"]["planner"] for state in info["internal_states"]]
    return all(isinstance(one, dict) and one["batches_measured"] > 0 for one in planners)


def ranks(cluster: Cluster) -> list[dict[str, Any]]:
    """Kairos' figures of the ranks of the decode server."""
    info = httpx.get(f"{cluster.decode[0].url}/server_info", timeout=60).json()
    found = [state["kairos"]["decode"] for state in info["internal_states"]]
    return sorted(found, key=lambda decode: decode["ranks"]["rank"])


@on(long=(KAIROS_EMULATED,))
def test_ranks_learn_alike_and_predict_the_step_of_the_slowest(cluster: Cluster) -> None:
    with ThreadPoolExecutor(2) as pool:
        # A step of the short request lasts as long as that of the long one.
        long = pool.submit(ask, cluster, LONG_TOKENS, 300, 0)
        short = pool.submit(ask, cluster, 100, 300, 1)
        long.result(), short.result()
    wait_idle(cluster)
    found = ranks(cluster)
    factors = [rank["calibration"] for rank in found]
    assert max(factors) / min(factors) < 1.05
    assert found[0]["ranks"]["slowest_share"] > 0.5
    assert found[1]["ranks"]["slowest_share"] < 0.5
    for rank in found:
        # While all have time to spare, one step of sixteen is learned from.
        assert rank["steps_measured"] > 10
        assert rank["measured_over_predicted"]["p50"] == pytest.approx(1.0, abs=0.1)


def ask(cluster: Cluster, tokens: int, new_tokens: int, decode_rank: int) -> None:
    """Have a rank of the decode server decode a fresh prompt."""
    body = {
        "input_ids": fresh_prompt(tokens),
        "sampling_params": {"max_new_tokens": new_tokens, "ignore_eos": True},
    }
    answer = send(cluster, body, decode_fields={"routed_dp_rank": decode_rank}).decode
    assert answer.status_code == 200, answer.text
    assert answer.json()["meta_info"]["dp_rank"] == decode_rank


def steps(role: str) -> list[tuple[DeviceRecord, ...]]:
    """Return the records of all steps so far, each of all ranks."""
    records = [r for r in read_device_trace(TRACE) if r.role == role and r.kind != "transfer"]
    ranks = sorted({record.pid for record in records})
    assert len(ranks) == 2
    by_rank = [[record for record in records if record.pid == pid] for pid in ranks]
    return list(zip(*by_rank, strict=True))


@on(long=(EMULATED,))
def test_a_step_of_a_short_stream_lasts_as_long_as_that_of_the_slowest_rank(
    cluster: Cluster,
) -> None:
    def decoding_long() -> bool:
        return any(r.context > LONG_TOKENS and r.kind == "decode" for r in read_device_trace(TRACE))

    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(ask, cluster, LONG_TOKENS, 200, 0)
        wait_for(decoding_long, "the first step of the long context")
        ask(cluster, 100, 40, 1)
        long.result()
    wait_idle(cluster)
    decode = load_profile(PROFILE).decode
    both = [step for step in steps("decode") if {r.kind for r in step} == {"decode"}]
    both = [step for step in both if max(r.context for r in step) > LONG_TOKENS]
    assert len(both) > 30
    for step in both:
        short, slow = sorted(step, key=lambda record: record.context)
        assert short.duration_s == slow.duration_s
        assert slow.waited_s == 0.0
        assert slow.duration_s == pytest.approx(
            decode.fixed_s + decode.per_request_s + decode.per_context_token_s * slow.context
        )
        alone_s = decode.step_s(1, short.context)
        assert short.duration_s - short.waited_s == pytest.approx(alone_s)


@on(long=(EMULATED,))
@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_no_rank_begins_a_step_before_the_last_has_ended_the_one_before(
    cluster: Cluster, role: str
) -> None:
    with ThreadPoolExecutor(6) as pool:
        asked = [
            pool.submit(ask, cluster, 100 + 700 * index, 20 + 5 * index, index % 2)
            for index in range(6)
        ]
        for request in asked:
            request.result()
    wait_idle(cluster)
    found = steps(role)
    assert any(role == record.kind for step in found for record in step)
    for step in found:
        assert len({record.duration_s for record in step}) == 1
    for earlier, later in pairwise(found):
        ended_s = max(record.end_s for record in earlier)
        assert all(r.end_s - r.duration_s >= ended_s - ROUNDING_S for r in later)


@pytest.mark.long
def test_a_killed_rank_ends_its_server_with_a_message(clusters: ClusterPool) -> None:
    clusters.stop()
    TRACE.unlink(missing_ok=True)
    with clusters.beside(EMULATED) as cluster:
        ask(cluster, 100, 20, 1)
        ranks = sorted({r.pid for r in read_device_trace(TRACE) if r.role == "decode"})
        os.kill(ranks[-1], signal.SIGKILL)
        with pytest.raises(ServerDiedError, match="decode-0 died while serving"):
            cluster.wait(60)
