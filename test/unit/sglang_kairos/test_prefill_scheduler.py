"""Order of the waiting queue where batches are upstream's."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.kairos.prefill_scheduler import PrefillScheduler
from sglang.srt.kairos.request_slo import RequestSlo

from kairos.latency import load_profile
from kairos.slo import Slo

PROFILE = load_profile("tiny-fast")  # 20,000 tokens/s
NOW = 1000.0


def policy(priorities: bool = False) -> Any:
    return SimpleNamespace(
        enable_priority_scheduling=priorities,
        priority_sign=-1,  # larger values first, upstream's default
        waiting_queue_prefix_matched=lambda _: True,
    )


def request(
    room: int, tokens: int, ttft_ms: float, *, cached: int = 0, priority: int | None = None
) -> Any:
    return SimpleNamespace(
        rid=f"r{room}",
        bootstrap_room=room,
        origin_input_ids=[0] * tokens,
        output_ids=[],
        num_matched_prefix_tokens=cached,
        priority=priority,
        kairos=RequestSlo(Slo(ttft_ms, 50), NOW),
    )


def ordered(waiting: list[Any], priorities: bool = False) -> list[int]:
    PrefillScheduler(PROFILE).order(waiting, policy(priorities), NOW)
    return [req.bootstrap_room for req in waiting]


def test_feasible_requests_go_by_deadline() -> None:
    waiting = [request(1, 100, 9000), request(2, 9000, 5000), request(3, 100, 7000)]
    assert ordered(waiting) == [2, 3, 1]


def test_hopeless_requests_go_last_the_shortest_first() -> None:
    waiting = [request(1, 60_000, 500), request(2, 40_000, 900), request(3, 100, 60_000)]
    assert ordered(waiting) == [3, 2, 1]


def test_a_cached_prefix_makes_a_request_feasible() -> None:
    waiting = [request(1, 100, 60_000), request(2, 40_000, 900, cached=39_000)]
    assert ordered(waiting) == [2, 1]


def test_priority_comes_before_urgency() -> None:
    waiting = [request(1, 100, 1000, priority=0), request(2, 100, 9000, priority=5)]
    assert ordered(list(waiting)) == [1, 2]
    assert ordered(list(waiting), priorities=True) == [2, 1]


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
    requests: list[tuple[int, int]], random: Any
) -> None:
    waiting = [request(room, tokens, ttft) for room, (tokens, ttft) in enumerate(requests)]
    shuffled = list(waiting)
    random.shuffle(shuffled)
    assert ordered(waiting) == ordered(shuffled)


def test_the_oldest_of_those_that_waited_too_long_goes_first_now_and_then() -> None:
    """Nothing bounded the wait of a long late prompt where batches are upstream's."""
    scheduler = PrefillScheduler(PROFILE)
    late = [request(1, 40_000, 1000), request(2, 90_000, 1000), request(3, 50_000, 2000)]
    for req, age_s in zip(late, (9.0, 12.0, 15.9), strict=True):
        req.kairos = RequestSlo(req.kairos.slo, NOW - age_s)
    urgent = request(4, 100, 9000)

    def front(waiting: list[Any], now: float) -> int:
        scheduler.order(waiting, policy(), now)
        room: int = waiting[0].bootstrap_room
        return room

    assert front([*late, urgent], NOW) == 2
    left = [late[0], late[2], urgent]  # it was taken, and its work is 2 % of the time to the next
    urgent.kairos = RequestSlo(urgent.kairos.slo, NOW + 2000)
    assert front(left, NOW + 1) == 4
    assert front(left, NOW + 200) == 4
    assert front(left, NOW + 1000) == 3
    assert scheduler.snapshot()["starvation_grants"] == 1


def test_who_waited_too_long_passes_nobody_of_a_higher_priority() -> None:
    old = request(1, 90_000, 1000, priority=0)
    old.kairos = RequestSlo(old.kairos.slo, NOW - 60.0)
    assert ordered([old, request(2, 100, 9000, priority=5)], priorities=True) == [2, 1]


def test_of_handshakes_too_the_oldest_that_waited_too_long_goes_first_now_and_then() -> None:
    """Late prompts were last of those that wait for a buffer, for as long as others came."""
    scheduler = PrefillScheduler(PROFILE)
    old, other = request(1, 90_000, 1000), request(2, 40_000, 1000)
    for req, age_s in ((old, 12.0), (other, 9.0)):
        req.kairos = RequestSlo(req.kairos.slo, NOW - age_s)
    fresh = [request(room, 100, 9000) for room in (3, 4)]

    def front(queue: list[Any], now: float) -> int:
        scheduler.order_handshakes(queue, policy(), now)
        room: int = queue[0].bootstrap_room
        return room

    assert front([*fresh, old, other], NOW) == 1
    assert front([*fresh, old, other], NOW + 0.1) == 1  # until it has a buffer
    assert front([*fresh, other], NOW + 0.2) == 3
    assert scheduler.snapshot()["starvation_grants"] == 1


def test_one_that_streams_already_and_was_retracted_comes_back_first() -> None:
    """Its TTFT deadline is past, and it once waited like a hopeless prompt."""
    back = request(2, 40_000, 500)
    back.output_ids = [1, 2, 3]
    assert ordered([request(1, 100, 1_000), back]) == [2, 1]
