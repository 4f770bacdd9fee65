"""Servers with data-parallel attention: real weights give the tokens of a server without."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kairos.cluster import Cluster, DpAttention
from support.clusters import Config, on
from support.pair import send, wait_idle

NEW_TOKENS = 40
LENGTHS = (30, 90, 200, 255, 300, 520, 700, 900)
# 256 tokens a rank; upstream divides the flag by the ranks.
RANKS = Config(
    platform="cpu", dp_attention=DpAttention(2, 2), args=("--chunked-prefill-size", "512")
)
ONE = Config(platform="cpu", args=("--chunked-prefill-size", "256"))


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


@on(ONE, RANKS)
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
