"""Decode memory on a queue like upstream's."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sglang.srt.kairos.decode_preallocation import DecodePreallocation
from sglang.srt.kairos.decode_rows import DecodeRows
from sglang.srt.kairos.request_slo import RequestSlo

from kairos.latency import load_profile
from kairos.policy.length import LengthEstimator
from kairos.slo import Slo, SloClasses

CAPACITY = 100_000


def waiting(number: int, tokens: int, max_new: int = 100, host: str = "10.0.0.1") -> Any:
    req = SimpleNamespace(
        origin_input_ids=[1] * tokens,
        output_ids=[],
        lora_id=None,
        finished_reason=None,
        sampling_params=SimpleNamespace(max_new_tokens=max_new),
        kairos=RequestSlo(Slo(10_000.0, 50.0), 0.0, number),
        bootstrap_host=host,
        bootstrap_port=8998,
    )
    return SimpleNamespace(req=req, waiting_for_input=True)


class Server:
    """What `arrange` reads of a scheduler and its queue."""

    def __init__(self, free: int, rows: int, prompts: list[Any], running: int = 1) -> None:
        resident = SimpleNamespace(origin_input_ids=[1] * 100, output_ids=[], lora_id=None)
        self.scheduler = SimpleNamespace(
            server_args=SimpleNamespace(disaggregation_decode_allocation_policy="early"),
            max_total_num_tokens=CAPACITY,
            page_size=1,
            enable_lora=False,
            running_batch=SimpleNamespace(reqs=[resident] * running),
            disagg_decode_transfer_queue=SimpleNamespace(queue=[]),
            waiting_queue=[],
        )
        self.now = 1.0
        self.queue = SimpleNamespace(
            queue=list(prompts),
            num_reserved_decode_tokens=512,
            req_to_token_pool=SimpleNamespace(available_size=lambda: rows),
            req_to_metadata_buffer_idx_allocator=SimpleNamespace(available_size=lambda: 64),
            _allocatable_token_budgets=lambda **_: free,
        )
        self.connect()

    def connect(self) -> None:
        """Read the scheduler's flags."""
        clock = SimpleNamespace(now=lambda: self.now, decided=lambda *_: None)
        table = DecodeRows(SloClasses(Slo(2_000.0, 50.0)))
        self.preallocation = DecodePreallocation(
            load_profile("tiny-fast").prefill, table, LengthEstimator(), clock, self.scheduler, None
        )

    def arrange(self) -> list[int]:
        """Numbers of those that upstream will look at, in order."""
        self.preallocation.arrange(self.queue)
        return [w.req.kairos.number for w in self.queue.queue if w.waiting_for_input]


def test_short_ones_that_fit_are_put_in_front() -> None:
    prompts = [waiting(1, 50_000), waiting(2, 9_000), waiting(3, 4_000)]
    assert Server(20_000, 8, prompts).arrange() == [3, 2]


def test_one_whose_output_upstream_wants_room_for_does_not_stop_those_behind_it() -> None:
    prompts = [waiting(1, 1_000, max_new=4_000), waiting(2, 2_000)]
    assert Server(3_000, 8, prompts).arrange() == [2]


def test_who_would_wait_for_a_busy_prefill_server_gets_no_memory_yet() -> None:
    for policy, expected in (("early", [2]), ("prefill_complete", [1, 2])):
        server = Server(200_000, 8, [waiting(1, 41_000), waiting(2, 41_000, host="10.0.0.2")])
        server.scheduler.max_total_num_tokens = 400_000
        # 1.4 seconds of certain work each, on the first server.
        server.scheduler.disagg_decode_transfer_queue.queue = [waiting(i, 40_000) for i in (3, 4)]
        server.scheduler.server_args.disaggregation_decode_allocation_policy = policy
        server.connect()
        assert server.arrange() == expected, policy


def test_a_long_prompt_that_counts_on_the_cache_is_not_given_up_at_its_arrival() -> None:
    server = Server(80_000, 8, [waiting(1, 50_000)])
    # Its whole prefill takes four seconds, and late prompts hold their share already.
    server.queue.queue[0].req.kairos = RequestSlo(Slo(700.0, 50.0), server.now - 0.1, 1)
    held = waiting(2, 15_000)
    held.req.kairos = RequestSlo(Slo(100.0, 50.0), 0.0, 2)
    server.scheduler.disagg_decode_transfer_queue.queue = [held]
    assert server.arrange() == [1]


def test_without_rows_nothing_is_granted() -> None:
    server = Server(50_000, 0, [waiting(1, 1_000), waiting(2, 1_000)])
    for _ in range(40):
        server.arrange()
    assert server.preallocation.snapshot()["granted"] == 0


def test_when_not_even_the_shortest_fits_nobody_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server(1_000, 8, [waiting(n, 1_000 + n) for n in range(50)])
    monkeypatch.setattr(LengthEstimator, "remaining", lambda *_: np.empty(0)[1])
    assert server.arrange() == []


def test_an_empty_server_is_left_to_upstream() -> None:
    assert Server(1_000, 8, [waiting(1, 90_000)], running=0).arrange() == [1]


def test_what_is_known_of_a_prompt_is_forgotten_with_it() -> None:
    server = Server(20_000, 8, [waiting(n, 30_000) for n in range(5)])
    server.arrange()
    server.queue.queue = [waiting(9, 1_000)]
    assert server.arrange() == [9]
    assert set(server.preallocation._known) == {9}


def test_retracted_requests_come_back_short_ones_first() -> None:
    server = Server(1_000, 8, [])
    server.queue.retracted_queue = [waiting(1, 900).req, waiting(2, 90).req, waiting(3, 500).req]
    server.preallocation.arrange_retracted(server.queue)
    assert [req.kairos.number for req in server.queue.retracted_queue] == [2, 3, 1]


@pytest.mark.parametrize("retracted", [0, 1])
def test_who_has_been_transferred_joins_while_others_wait_to_come_back(retracted: int) -> None:
    server = Server(1_000, 8, [])
    scheduler, arrived = server.scheduler, waiting(7, 100).req
    transfers = SimpleNamespace(queue=[arrived], pop_transferred=lambda: [arrived])
    scheduler.disagg_decode_transfer_queue = transfers
    scheduler.disagg_decode_prealloc_queue = SimpleNamespace(
        retracted_queue=[waiting(1, 900).req] * retracted
    )
    server.preallocation.take_in_transferred()
    assert scheduler.waiting_queue == [arrived] * retracted


def test_a_prompt_whose_adapter_finds_no_slot_takes_nothing_from_others() -> None:
    """It once was given the memory, which upstream then gave to nobody."""
    server = Server(20_000, 1, [waiting(1, 1_000), waiting(2, 15_000)])
    server.scheduler.enable_lora = True
    server.queue.queue[0].req.lora_id = "full"
    server.scheduler.can_schedule_lora_req = lambda req, adapters: (
        req.lora_id in adapters or req.lora_id != "full"
    )
    assert set(server.arrange()) == {1, 2}  # upstream passes the first by itself
    assert server.queue.queue[0].req.kairos.number == 2


def test_who_streams_and_was_retracted_by_a_pause_is_not_late() -> None:
    """With tokens out already, it once waited like a hopeless prompt."""
    server = Server(40_000, 8, [waiting(1, 1_000), waiting(2, 1_001)])
    for one in server.queue.queue:
        one.req.kairos = RequestSlo(Slo(100.0, 50.0), 0.0, one.req.kairos.number)
    assert server.arrange() == []
    server = Server(40_000, 8, server.queue.queue)
    for one in server.queue.queue:
        one.waiting_for_input = True
        one.req.kairos.first_token_s = 0.05
    assert server.arrange() == [1, 2]


def test_who_would_soon_be_given_up_goes_first() -> None:
    """The prefill server ends a handshake that is 300 s old with an error."""
    hopeless = waiting(1, 30_000)
    hopeless.req.kairos = RequestSlo(Slo(100.0, 50.0), 0.0, 1)
    server = Server(32_000, 8, [hopeless, waiting(2, 2_000)])
    assert server.arrange() == [2]
    server = Server(32_000, 8, [hopeless, waiting(2, 2_000)])
    hopeless.waiting_for_input = True
    server.now = 151.0
    assert server.arrange() == [1]


def test_memory_is_counted_in_pages() -> None:
    server = Server(2_000, 8, [waiting(1, 1_025), waiting(2, 1_030)])
    server.scheduler.page_size = 1_024
    server.connect()
    assert server.arrange() == []
