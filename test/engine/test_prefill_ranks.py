"""Two tensor-parallel ranks whose clocks differ plan the same batches.

A rank that forms another batch than the first one stops its server
(`test_shared_clock.py`), so a server that is still there has planned alike on both.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kairos.cluster import Cluster
from support.clusters import on
from support.configs import KAIROS
from support.pair import fresh_prompt, kairos_state, send, wait_idle

SKEW = Path(__file__).parent.parent / "support" / "skew"
RANKS = replace(
    KAIROS,
    args=(*KAIROS.args, "--tp-size", "2"),
    env=(
        ("SGLANG_CPU_OMP_THREADS_BIND", "0|1"),
        ("PYTHONPATH", str(SKEW)),
        ("KAIROS_TEST_SKEW_S", "5"),
    ),
)


@on(RANKS)
def test_ranks_with_skewed_clocks_plan_alike(cluster: Cluster) -> None:
    def answered(tokens: int, ttft_ms: float) -> int:
        body = {
            "input_ids": fresh_prompt(tokens),
            "sampling_params": {"max_new_tokens": 2, "ignore_eos": True},
            "kairos": {"ttft_ms": ttft_ms},
        }
        return len(send(cluster, body).decode.json()["output_ids"])

    def state() -> dict[str, Any]:
        found = kairos_state(cluster.prefill[0])
        assert found is not None
        return found

    before = state()["decisions"]
    # About six seconds of work, and objectives that five seconds decide on.
    random = np.random.default_rng(5)
    with ThreadPoolExecutor(20) as pool:
        answers = [
            pool.submit(answered, int(tokens), float(ttft_ms))
            for tokens, ttft_ms in zip(
                random.integers(100, 12_000, 20), random.integers(300, 9_000, 20), strict=True
            )
        ]
        assert [answer.result() for answer in answers] == [2] * 20
    wait_idle(cluster)
    assert state()["decisions"] != before
    assert state()["planner"]["overtakes"] > 0
