"""Planned prefill with LoRA: parking and overtaking across adapters."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from kairos.cluster import Cluster
from support.adapters import LORA, load_adapter, write_adapter
from support.clusters import Config, on
from support.configs import DEFAULT_SLO
from support.pair import kairos_state, occupancy, send, wait_for, wait_idle

# Real weights, chunks of 256 tokens, two of the three adapters a prefill batch.
ADAPTERS = Config(
    platform="cpu",
    kairos=True,
    args=(*DEFAULT_SLO, "--chunked-prefill-size", "256", *LORA),
    prefill_args=("--max-loras-per-batch", "2"),
)
NAMES = (None, "one", "two")  # the base model counts as one


def planner(cluster: Cluster) -> dict[str, Any]:
    state = kairos_state(cluster.prefill[0])
    assert state is not None
    assert isinstance(state["planner"], dict), state["planner"]
    return state["planner"]


@on(long=(ADAPTERS,))
def test_prompts_of_all_adapters_overtake_each_other_and_keep_their_tokens(
    cluster: Cluster, tmp_path: Path
) -> None:
    for seed, name in enumerate(NAMES):
        if name is not None:
            adapter = write_adapter(tmp_path / name, Path(cluster.spec.model), seed)
            load_adapter(cluster, name, adapter)
    random = np.random.default_rng(23)
    prompts = {tokens: random.integers(10, 1000, tokens).tolist() for tokens in (3000, 700)}
    finished: list[int] = []

    def tokens(name: str | None, length: int, ttft_ms: float) -> list[int]:
        body = {
            "input_ids": prompts[length],
            "sampling_params": {"temperature": 0, "max_new_tokens": 16, "ignore_eos": True},
            "kairos": {"ttft_ms": ttft_ms},
            **({"lora_path": name} if name is not None else {}),
        }
        output: list[int] = send(cluster, body).decode.json()["output_ids"]
        finished.append(length)
        return output

    before = planner(cluster)
    with ThreadPoolExecutor(6) as pool:
        long = [pool.submit(tokens, name, 3000, 600_000) for name in NAMES]
        wait_for(lambda: occupancy(cluster.prefill[0])["num_used_tokens"] > 0)
        short = [pool.submit(tokens, name, 700, 60_000) for name in NAMES]
        disturbed = [answer.result() for answer in (*long, *short)]
    after = planner(cluster)
    assert finished == [700] * 3 + [3000] * 3
    assert after["preemptions"] > before["preemptions"]
    assert after["overtakes"] >= before["overtakes"] + 3
    wait_idle(cluster)
    # The same chunks again, from the radix cache.
    alone = [tokens(name, length, 60_000) for length in (3000, 700) for name in NAMES]
    assert disturbed == alone
    assert len({tuple(output) for output in alone}) == len(alone), "an adapter without effect"
    wait_idle(cluster)
