"""Decode memory on a queue like upstream's."""

import numpy as np
import pytest
from sglang.srt.kairos.request_slo import RequestSlo
from sglang.srt.kairos.request_state import RequestState, StreamedToken

from kairos.policy.length import LengthEstimator
from kairos.slo import Slo
from support.decode_memory import DecodeServer, retracted, waiting


def test_short_prompts_that_fit_are_put_in_front() -> None:
    prompts = [waiting(1, 50_000), waiting(2, 9_000), waiting(3, 4_000)]
    assert DecodeServer(20_000, 8, prompts).arrange() == [3, 2]


def test_best_effort_prompts_alone_keep_upstreams_order() -> None:
    prompts = [waiting(1, 5_000), waiting(2, 4_000)]
    for prompt in prompts:
        prompt.req.kairos = RequestState(RequestSlo(Slo(), 0.0), prompt.req.kairos.number)
    assert DecodeServer(50_000, 8, prompts).arrange() == [1, 2]
    assert DecodeServer(90_000, 8, [*prompts, waiting(3, 8_000)]).arrange() == [3, 1, 2]


def test_prompt_without_room_for_its_output_blocks_no_other() -> None:
    prompts = [waiting(1, 1_000, max_new=4_000), waiting(2, 2_000)]
    assert DecodeServer(3_000, 8, prompts).arrange() == [2]


def test_prompt_for_a_busy_prefill_server_gets_no_memory_yet() -> None:
    for policy, expected in (("early", [2]), ("prefill_complete", [1, 2])):
        server = DecodeServer(200_000, 8, [waiting(1, 41_000), waiting(2, 41_000, host="10.0.0.2")])
        server.scheduler.max_total_num_tokens = 400_000
        # 1.4 seconds of certain work each, on the first server.
        server.scheduler.disagg_decode_transfer_queue.queue = [waiting(i, 40_000) for i in (3, 4)]
        server.scheduler.server_args.disaggregation_decode_allocation_policy = policy
        server.connect()
        assert server.arrange() == expected, policy


def test_long_prompt_that_may_be_cached_is_feasible_at_its_arrival() -> None:
    server = DecodeServer(80_000, 8, [waiting(1, 50_000)])
    # Its whole prefill takes four seconds, and infeasible prompts hold their share already.
    server.queue.queue[0].req.kairos = RequestState(
        RequestSlo(Slo(700.0, 50.0), server.now - 0.1), 1
    )
    held = waiting(2, 15_000)
    held.req.kairos = RequestState(RequestSlo(Slo(100.0, 50.0), 0.0), 2)
    server.scheduler.disagg_decode_transfer_queue.queue = [held]
    assert server.arrange() == [1]


def test_without_request_slots_nothing_is_granted() -> None:
    server = DecodeServer(50_000, 0, [waiting(1, 1_000), waiting(2, 1_000)])
    for _ in range(40):
        server.arrange()
    assert server.preallocation.snapshot()["granted"] == 0


def test_policy_is_not_asked_when_the_shortest_prompt_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = DecodeServer(1_000, 8, [waiting(n, 1_000 + n) for n in range(50)])
    monkeypatch.setattr(LengthEstimator, "remaining", lambda *_: np.empty(0)[1])
    assert server.arrange() == []


def test_empty_server_is_left_to_upstream() -> None:
    assert DecodeServer(1_000, 8, [waiting(1, 90_000)], running=0).arrange() == [1]


def test_prompt_is_dropped_when_it_leaves_the_queue() -> None:
    server = DecodeServer(20_000, 8, [waiting(n, 30_000) for n in range(5)])
    server.arrange()
    server.queue.queue = [waiting(9, 1_000)]
    assert server.arrange() == [9]
    assert server.preallocation.prompts.ids == {9}


def test_short_retracted_requests_are_resumed_first() -> None:
    server = DecodeServer(1_000, 8, [])
    server.queue.retracted_queue = [retracted(1, 900), retracted(2, 90), retracted(3, 500)]
    server.preallocation.arrange_retracted(server.queue)
    assert [req.kairos.number for req in server.queue.retracted_queue] == [2, 3, 1]


@pytest.mark.parametrize("others", [0, 1])
def test_transferred_request_joins_while_retracted_ones_wait(others: int) -> None:
    server = DecodeServer(1_000, 8, [])
    transferred = waiting(7, 100)
    transfers = server.scheduler.disagg_decode_transfer_queue
    transfers.queue, transfers.arrived = [transferred], [transferred.req]
    server.queue.retracted_queue = [retracted(1, 900)] * others
    assert server.preallocation.pop_transferred() == [transferred.req] * others


def test_prompt_whose_adapter_has_no_slot_takes_no_memory() -> None:
    server = DecodeServer(20_000, 1, [waiting(1, 1_000, lora="full"), waiting(2, 15_000)])
    server.scheduler.enable_lora = True
    server.scheduler.adapter_without_slot = "full"
    assert set(server.arrange()) == {1, 2}  # upstream passes over the first by itself
    assert server.queue.queue[0].req.kairos.number == 2


def test_retracted_request_that_has_streamed_is_feasible() -> None:
    server = DecodeServer(40_000, 8, [waiting(1, 1_000), waiting(2, 1_001)])
    for one in server.queue.queue:
        one.req.kairos = RequestState(RequestSlo(Slo(100.0, 50.0), 0.0), one.req.kairos.number)
    assert server.arrange() == []
    server = DecodeServer(40_000, 8, server.queue.queue)
    for one in server.queue.queue:
        one.waiting_for_input = True
        one.req.kairos.first_token = StreamedToken(0.05)
    assert server.arrange() == [1, 2]


def test_prompt_near_the_handshake_timeout_goes_first() -> None:
    """The prefill server ends a handshake that is 300 s old with an error."""
    infeasible = waiting(1, 30_000)
    infeasible.req.kairos = RequestState(RequestSlo(Slo(100.0, 50.0), 0.0), 1)
    server = DecodeServer(32_000, 8, [infeasible, waiting(2, 2_000)])
    assert server.arrange() == [2]
    server = DecodeServer(32_000, 8, [infeasible, waiting(2, 2_000)])
    infeasible.waiting_for_input = True
    server.now = 151.0
    assert server.arrange() == [1]


def test_memory_is_counted_in_pages() -> None:
    server = DecodeServer(2_000, 8, [waiting(1, 1_025), waiting(2, 1_030)])
    server.scheduler.page_size = 1_024
    server.connect()
    assert server.arrange() == []
