"""Scheduling changes when a token is computed, never which one: real weights, temperature 0."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from kairos.cluster import Cluster
from support.clusters import ClusterPool, Config, on
from support.configs import DEFAULT_SLO
from support.pair import kairos_state, send
from support.vendored import vendor

# The servers' chunk is 256 tokens: prompts of one, two and four chunks, two with a shared prefix.
LENGTHS = (30, 90, 200, 255, 300, 520, 700, 900)
NEW_TOKENS = 40

CHUNKS = ("--chunked-prefill-size", "256")
# A list of allowed plugins without `kairos`: the package is installed and SGLang ignores it.
WITHOUT_PLUGIN = (("SGLANG_PLUGINS", "kairos-cpu"),)
OFF = Config(platform="cpu", args=CHUNKS)
UPSTREAM = replace(OFF, env=WITHOUT_PLUGIN)
UPSTREAM_SINGLE = replace(UPSTREAM, prefill=0, decode=0)
BEST_EFFORT = replace(OFF, kairos=True)
KAIROS = replace(BEST_EFFORT, args=(*CHUNKS, *DEFAULT_SLO))
KAIROS_NO_OVERLAP = replace(KAIROS, args=(*KAIROS.args, "--disable-overlap-schedule"))
KAIROS_SINGLE = replace(KAIROS, prefill=0, decode=0)

Outputs = list[list[int]]


def prompts() -> list[list[int]]:
    random = np.random.default_rng(7)
    made = [random.integers(10, 1000, size=length).tolist() for length in LENGTHS]
    made[-1][:400] = made[-2][:400]
    return made


def generate(cluster: Cluster, ids: list[int]) -> list[int]:
    body = {
        "input_ids": ids,
        "sampling_params": {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True},
    }
    if cluster.decode:
        response = send(cluster, body).decode
    else:
        response = httpx.post(f"{cluster.url}/generate", json=body, timeout=120)
    assert response.status_code == 200, response.text
    output = response.json()["output_ids"]
    assert len(output) == NEW_TOKENS
    return output


def outputs(cluster: Cluster) -> tuple[Outputs, Outputs]:
    """Outputs of one request after the other, then of all at once.

    The first pass fills the radix cache, so that the second splits every prompt into the same
    chunks however the requests happen to share batches: chunk boundaries change the order of
    floating-point sums, and with it near-ties.
    """
    alone = [generate(cluster, ids) for ids in prompts()]
    with ThreadPoolExecutor(len(LENGTHS)) as pool:
        together = list(pool.map(lambda ids: generate(cluster, ids), prompts()))
    return alone, together


@pytest.fixture(scope="session")
def reference() -> list[Outputs]:
    """The outputs of a single upstream server, once they are known."""
    return []


@on(UPSTREAM_SINGLE)
def test_the_reference_is_worth_comparing_with(cluster: Cluster, reference: list[Outputs]) -> None:
    alone, together = outputs(cluster)
    assert alone == together
    assert len({tuple(output) for output in alone}) == len(LENGTHS)
    assert all(len(set(output)) > NEW_TOKENS // 2 for output in alone), "degenerate weights"
    reference.append(alone)


@on(OFF, KAIROS, long=(BEST_EFFORT, UPSTREAM, KAIROS_NO_OVERLAP, KAIROS_SINGLE))
def test_tokens_equal_those_of_a_single_upstream_server(
    cluster: Cluster, clusters: ClusterPool, reference: list[Outputs]
) -> None:
    if not reference:
        with clusters.beside(UPSTREAM_SINGLE) as single:
            reference.append(outputs(single)[0])
    alone, together = outputs(cluster)
    assert alone == reference[0]
    assert together == reference[0]


@pytest.mark.long
def test_a_copy_of_sglang_with_the_exported_patches_does_the_same(
    tmp_path: Path,
    clusters: ClusterPool,
    reference: list[Outputs],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not reference:
        with clusters.beside(UPSTREAM_SINGLE) as single:
            reference.append(outputs(single)[0])
    python = str(vendor(tmp_path))
    monkeypatch.chdir(tmp_path)  # `python -m` looks there first, and here is the checkout
    # The installed plugin is not loaded: the patches alone bring Kairos.
    env = (("PYTHONPATH", python), ("SGLANG_PLUGINS", "none"))
    with clusters.beside(replace(KAIROS, env=env)) as patched:
        alone, together = outputs(patched)
        assert alone == reference[0]
        assert together == reference[0]
        assert all(kairos_state(server) is not None for server in patched.servers)
