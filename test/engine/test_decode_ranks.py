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
        # Steps take 8 ms and more, so the first objectives are infeasible. Two requests have time
        # to spare, and are long: they are skipped whenever a step of all is too long for another.
        tokens, tpot_ms = (16_000, 200.0) if at < 2 else (300, 8.0 + 0.25 * at)
        body = {
            "input_ids": fresh_prompt(tokens),
            "sampling_params": {"max_new_tokens": 300, "ignore_eos": True},
            "kairos": {"tpot_ms": tpot_ms},
        }
        return len(send(cluster, body).decode.json()["output_ids"])

    before = state()["decode"]["skips"]
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(answered, range(32))) == [300] * 32
    assert state()["decode"]["skips"] > before
    wait_idle(cluster)
