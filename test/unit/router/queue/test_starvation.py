"""Who holds a door, and until when."""

import pytest

from kairos.router.placement.decode_target import DecodeTarget
from kairos.router.queue.params import DispatchParams
from kairos.router.queue.starvation import Starvation
from support.dispatching import dispatcher, ids, work

LATE_S = 1_000.0


@pytest.fixture
def starvation() -> Starvation:
    """With a door at "d" for request 1."""
    made = Starvation()
    decode = DecodeTarget("d", None, 100_000, None)
    made.hold_door(work(1, 0.0, 50_000), [decode], LATE_S, DispatchParams())
    assert made.door == (1, "d")
    return made


def test_a_door_is_given_up_when_its_request_leaves(starvation: Starvation) -> None:
    starvation.left(2)
    assert starvation.door == (1, "d")
    starvation.left(1)
    assert starvation.door is None


def test_a_door_is_given_up_when_its_instance_takes_nothing(starvation: Starvation) -> None:
    starvation.closed("e")
    assert starvation.door == (1, "d")
    starvation.closed("d")
    assert starvation.door is None


def test_who_has_not_waited_too_long_gets_no_door() -> None:
    made = Starvation()
    decode = DecodeTarget("d", None, 100_000, None)
    made.hold_door(work(1, 0.0, 50_000), [decode], 0.1, DispatchParams())
    assert made.door is None


def test_a_request_that_is_cancelled_leaves_no_door_behind() -> None:
    made = dispatcher(decode_kv=60_000)
    made.offer(work(1, 0.0, 50_000, ttft_ms=60_000.0), 0.0)
    assert ids(made.dispatch(0.0)) == [1]
    made.prefill_done(1, 10.0)
    made.offer(work(2, 10.0, 40_000, ttft_ms=60_000.0), 10.0)
    assert made.dispatch(LATE_S) == []
    assert made._starvation.door == (2, "d0")
    made.cancelled(2, LATE_S)
    made.offer(work(3, LATE_S, 100), LATE_S)
    assert ids(made.dispatch(LATE_S)) == [3]
