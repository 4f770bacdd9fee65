"""Order of the waiting queue where batches are upstream's."""

import math
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.kairos.prefill.scheduler import PrefillScheduler
from sglang.srt.kairos.request_slo import RequestSlo
from sglang.srt.kairos.request_state import RequestState
from sglang.srt.kairos.upstream import Req

from kairos.latency import load_profile
from support.fake_req import FakeReq, fake_req
from support.fake_scheduler import FakePolicy

PROFILE = load_profile("tiny-fast")  # 20,000 tokens/s
NOW = 1000.0


def request(
    room: int, tokens: int, ttft_ms: float, *, cached: int = 0, priority: int | None = None
) -> FakeReq:
    req = fake_req(room, tokens, ttft_ms, cached)
    req.bootstrap_room, req.priority = room, priority
    aged(req, 0.0)
    return req


def aged(req: FakeReq, seconds: float) -> None:
    """It has arrived that long before `NOW`."""
    req.kairos = RequestState(RequestSlo(req.kairos.slo, NOW - seconds), req.kairos.number)


def first_room(waiting: Sequence[Req]) -> int | None:
    return waiting[0].bootstrap_room


def ordered(requests: Sequence[FakeReq], priorities: bool = False) -> list[int | None]:
    waiting: list[Req] = list(requests)
    PrefillScheduler(PROFILE).order(waiting, FakePolicy(priorities), NOW)
    return [req.bootstrap_room for req in waiting]


def test_best_effort_requests_go_last_by_arrival_and_alone_in_upstreams_order() -> None:
    none = [request(1, 100, math.inf), request(2, 50, math.inf)]
    aged(none[1], 5.0)
    assert ordered([*none, request(3, 90_000, 1)]) == [3, 2, 1]
    assert ordered(none) == [1, 2]


def test_feasible_requests_go_by_deadline() -> None:
    waiting = [request(1, 100, 9000), request(2, 9000, 5000), request(3, 100, 7000)]
    assert ordered(waiting) == [2, 3, 1]


def test_infeasible_requests_go_last_the_shortest_first() -> None:
    waiting = [request(1, 60_000, 500), request(2, 40_000, 900), request(3, 100, 60_000)]
    assert ordered(waiting) == [3, 2, 1]


def test_a_cached_prefix_makes_a_request_feasible() -> None:
    waiting = [request(1, 100, 60_000), request(2, 40_000, 900, cached=39_000)]
    assert ordered(waiting) == [2, 1]


def test_priority_comes_before_urgency() -> None:
    waiting = [request(1, 100, 1000, priority=0), request(2, 100, 9000, priority=5)]
    assert ordered(waiting) == [1, 2]
    assert ordered(waiting, priorities=True) == [2, 1]


def test_a_request_without_priority_counts_as_zero() -> None:
    waiting = [request(1, 100, 9000), request(2, 100, 1000, priority=-1)]
    assert ordered(waiting, priorities=True) == [1, 2]


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_order(count: int) -> None:
    waiting = [request(n, 10, 100) for n in range(count)]
    assert ordered(waiting) == list(range(count))


@given(
    st.lists(st.tuples(st.integers(1, 50_000), st.integers(1, 60_000)), max_size=12), st.randoms()
)
def test_the_order_does_not_depend_on_how_requests_arrived_in_the_queue(
    requests: list[tuple[int, int]], random: Random
) -> None:
    waiting = [request(room, tokens, ttft) for room, (tokens, ttft) in enumerate(requests)]
    shuffled = list(waiting)
    random.shuffle(shuffled)
    assert ordered(waiting) == ordered(shuffled)


def test_the_oldest_starved_request_is_promoted_within_a_share_of_the_time() -> None:
    """Nothing else bounds the wait of a long infeasible prompt where batches are upstream's."""
    scheduler = PrefillScheduler(PROFILE)
    late = [request(1, 40_000, 1000), request(2, 90_000, 1000), request(3, 50_000, 2000)]
    for req, age_s in zip(late, (9.0, 12.0, 15.9), strict=True):
        aged(req, age_s)
    urgent = request(4, 100, 9000)

    def front(requests: Sequence[FakeReq], now: float) -> int | None:
        waiting: list[Req] = list(requests)
        scheduler.order(waiting, FakePolicy(), now)
        return first_room(waiting)

    assert front([*late, urgent], NOW) == 2
    left = [late[0], late[2], urgent]  # it was taken, and its work is 2 % of the time to the next
    aged(urgent, -2000.0)
    assert front(left, NOW + 1) == 4
    assert front(left, NOW + 200) == 4
    assert front(left, NOW + 1000) == 3
    assert scheduler.snapshot()["starvation_grants"] == 1


def test_a_starved_request_does_not_pass_a_higher_priority() -> None:
    old = request(1, 90_000, 1000, priority=0)
    aged(old, 60.0)
    assert ordered([old, request(2, 100, 9000, priority=5)], priorities=True) == [2, 1]


def test_the_oldest_starved_handshake_is_promoted_until_it_has_a_buffer() -> None:
    scheduler = PrefillScheduler(PROFILE)
    old, other = request(1, 90_000, 1000), request(2, 40_000, 1000)
    for req, age_s in ((old, 12.0), (other, 9.0)):
        aged(req, age_s)
    fresh = [request(room, 100, 9000) for room in (3, 4)]

    def front(requests: Sequence[FakeReq], now: float) -> int | None:
        queue: list[Req] = list(requests)
        scheduler.order_handshakes(queue, FakePolicy(), now)
        return first_room(queue)

    assert front([*fresh, old, other], NOW) == 1
    assert front([*fresh, old, other], NOW + 0.1) == 1
    assert front([*fresh, other], NOW + 0.2) == 3
    assert scheduler.snapshot()["starvation_grants"] == 1


def test_a_retracted_request_that_streams_comes_back_first() -> None:
    """Its TTFT deadline is past, but it is not infeasible."""
    back = request(2, 40_000, 500)
    back.output_ids = [1, 2, 3]
    assert ordered([request(1, 100, 1_000), back]) == [2, 1]
