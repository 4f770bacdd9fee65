"""Ranks whose clocks and measurements differ decide by the first rank's."""

from typing import Any

import pytest
from sglang.srt.kairos.shared_clock import RanksDivergedError, SharedClock

SKEW_S = 5.0


class Ranks:
    """The clocks of two ranks, and the broadcast between their receivers."""

    def __init__(self, skew_s: float = SKEW_S) -> None:
        self.time_s = 1000.0
        self.first = SharedClock(2, lambda: self.time_s)
        self.second = SharedClock(2, lambda: self.time_s - skew_s)
        self.polled = True

    def step(self, requests: list[Any]) -> tuple[list[Any], list[Any]]:
        """One pass of both event loops; the requests that each rank receives."""
        sent: list[Any] = []

        def leads(_receiver: Any, local_reqs: Any) -> list[Any]:
            if not self.polled:
                return []
            sent[:] = [*requests, *local_reqs]
            return list(sent)

        def follows(_receiver: Any, _local_reqs: Any) -> list[Any]:
            return list(sent)

        return (
            self.first.receive(leads, None, ["timeout"]),
            self.second.receive(follows, None, None),
        )


@pytest.mark.parametrize("skew_s", [SKEW_S, -SKEW_S])
def test_both_ranks_use_the_time_of_the_first(skew_s: float) -> None:
    ranks = Ranks(skew_s)
    for ranks.time_s in (1000.0, 1003.5):
        ranks.step([])
        assert ranks.first.now() == ranks.second.now() == ranks.time_s
    ranks.time_s = 2000.0
    assert ranks.first.now() == ranks.second.now() == 1003.5, "until the next pass"


def test_requests_arrive_unchanged() -> None:
    assert Ranks().step(["a", "b"]) == (["a", "b", "timeout"], ["a", "b", "timeout"])


def test_time_moves_in_passes_that_poll_nothing() -> None:
    """As under --scheduler-recv-interval; time neither stands still nor goes back."""
    ranks = Ranks()
    seen = []
    for at in range(60):
        ranks.polled = at % 6 == 0
        ranks.time_s += 0.02
        ranks.step([])
        assert ranks.first.now() == ranks.second.now()
        seen.append(ranks.first.now())
        if at > 20:
            assert ranks.first.now() == pytest.approx(ranks.time_s, abs=0.021)
    assert seen == sorted(seen)


def test_time_after_one_long_pass_is_not_predicted_from_it() -> None:
    ranks = Ranks()
    for ranks.time_s in (1000.0, 1000.02, 1000.04, 1002.0):
        ranks.step([])
    ranks.polled = False
    for _ in range(10):
        ranks.time_s += 0.02
        ranks.step([])
    assert ranks.first.now() == ranks.second.now() == pytest.approx(ranks.time_s)


def test_the_learned_values_of_the_first_rank_are_used() -> None:
    ranks = Ranks()
    ranks.first.learn("factor", 1.2)
    ranks.second.learn("factor", 1.4)
    assert ranks.first.learned("factor", 1.0) == ranks.second.learned("factor", 1.0) == 1.0
    ranks.step([])
    assert ranks.first.learned("factor", 1.0) == ranks.second.learned("factor", 1.0) == 1.2


def test_ranks_that_decide_differently_stop() -> None:
    ranks = Ranks()
    for clock in (ranks.first, ranks.second):
        clock.decided(1, 2)
    ranks.step([])
    ranks.first.decided(3)
    ranks.second.decided(4)
    with pytest.raises(RanksDivergedError):
        ranks.step([])


def test_a_single_rank_sends_nothing() -> None:
    clock = SharedClock(1, lambda: 7.0)
    seen: list[Any] = []

    def receive(_receiver: Any, local_reqs: Any) -> list[Any]:
        seen.append(local_reqs)
        return ["request"]

    assert clock.receive(receive, None, None) == ["request"]
    assert seen == [None]
    assert clock.now() == 7.0
    clock.learn("factor", 1.2)
    assert clock.learned("factor", 1.0) == 1.2
