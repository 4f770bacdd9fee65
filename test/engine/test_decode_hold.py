"""First tokens that are held until a decode slot is ready: none is late and none is lost."""

import time
from contextlib import ExitStack
from typing import Any

from kairos.cluster import Cluster
from support.clusters import on
from support.configs import KAIROS_TIGHT
from support.pair import Streaming, kairos_state, wait_for, wait_idle


def hold(cluster: Cluster) -> dict[str, Any]:
    state = kairos_state(cluster.decode[0])
    assert state is not None
    return state["decode"]["hold"]


@on(KAIROS_TIGHT)
def test_held_tokens_are_released_with_a_slot_or_at_the_deadline(cluster: Cluster) -> None:
    before = hold(cluster)["held_ever"]
    with ExitStack() as stack:
        # A step of 16 requests takes 8.3 ms, so a larger one would miss 8.35 ms.
        urgent = [
            stack.enter_context(
                Streaming(cluster, 200, 500, slo={"ttft_ms": 30_000.0, "tpot_ms": 8.35})
            )
            for _ in range(16)
        ]
        wait_for(lambda: all(one.events > 10 for one in urgent), "a full batch", 60)
        begin = time.monotonic()
        slo = {"ttft_ms": 1_500.0, "tpot_ms": 100.0}
        joining = [stack.enter_context(Streaming(cluster, 400, 20, slo=slo)) for _ in range(8)]
        wait_for(lambda: all(one.events > 0 for one in joining), "first tokens", 10)
        assert time.monotonic() - begin < 5.0
        for one in [*joining, *urgent]:
            one.wait_finished()
        assert all(one.events > 10 for one in joining)
    after = hold(cluster)
    assert after["held_ever"] >= before + 24
    assert after["held"] == 0
    wait_idle(cluster)


@on(KAIROS_TIGHT)
def test_held_request_can_be_aborted(cluster: Cluster) -> None:
    with ExitStack() as stack:
        slo = {"ttft_ms": 20_000.0, "tpot_ms": 8.4}
        requests = [stack.enter_context(Streaming(cluster, 300, 400, slo=slo)) for _ in range(24)]
        for one in requests:
            one.abort()
            one.wait_finished()
    assert hold(cluster)["held"] == 0
    wait_idle(cluster)
