"""Two tensor-parallel ranks whose clocks differ skip the same requests.

A rank that decides otherwise than the first rank stops its server (`test_shared_clock.py`).
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from kairos.cluster import Cluster
from support.clusters import on
from support.configs import KAIROS
from support.pair import fresh_prompt, kairos_state, send, wait_idle

SKEW = Path(__file__).parent.parent / "support" / "skew"
# The configuration of test_prefill_ranks.py.
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
def test_ranks_with_skewed_clocks_skip_the_same_requests(cluster: Cluster) -> None:
    def state() -> dict[str, Any]:
        found = kairos_state(cluster.decode[0])
        assert found is not None
        return found

    def answered(at: int) -> int:
        # Steps take 8 ms and more: one objective is infeasible. Six requests have time to spare,
        # and are long, so that skipping them pays.
        tokens, tpot_ms = (6_000, 200.0) if at < 6 else (300, (1.0, 9.2, 11.0, 13.0)[at % 4])
        body = {
            "input_ids": fresh_prompt(tokens),
            "sampling_params": {"max_new_tokens": 400, "ignore_eos": True},
            "kairos": {"tpot_ms": tpot_ms},
        }
        return len(send(cluster, body).decode.json()["output_ids"])

    before = state()["decode"]["skips"]
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(answered, range(32))) == [400] * 32
    assert state()["decode"]["skips"] > before, str(state()["decode"])
    wait_idle(cluster)
