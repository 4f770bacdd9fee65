"""Reservations of decode workers: which request has one, and until when."""

import pytest

from kairos.router.placement.decode_target import DecodeTarget
from kairos.router.queue.params import DispatchParams
from kairos.router.queue.starvation import Starvation
from support.dispatching import dispatcher, ids, work

LATE_S = 1_000.0


@pytest.fixture
def starvation() -> Starvation:
    """With a reservation of "d" for request 1."""
    made = Starvation(DispatchParams())
    decode = DecodeTarget("d", None, 100_000, None)
    made.reserve(work(1, 0.0, 50_000), [decode], LATE_S)
    assert made.reservation == (1, "d")
    return made


def test_a_reservation_ends_when_its_request_leaves(starvation: Starvation) -> None:
    starvation.left(2)
    assert starvation.reservation == (1, "d")
    starvation.left(1)
    assert starvation.reservation is None


def test_a_reservation_ends_when_its_worker_takes_nothing(starvation: Starvation) -> None:
    starvation.closed("e")
    assert starvation.reservation == (1, "d")
    starvation.closed("d")
    assert starvation.reservation is None


def test_a_request_that_has_not_waited_too_long_gets_no_reservation() -> None:
    made = Starvation(DispatchParams())
    decode = DecodeTarget("d", None, 100_000, None)
    made.reserve(work(1, 0.0, 50_000), [decode], 0.1)
    assert made.reservation is None


def test_a_request_that_is_cancelled_leaves_no_reservation_behind() -> None:
    made = dispatcher(decode_kv=60_000)
    made.offer(work(1, 0.0, 50_000, ttft_ms=60_000.0), 0.0)
    assert ids(made.dispatch(0.0)) == [1]
    made.prefill_done(1, 10.0)
    made.offer(work(2, 10.0, 40_000, ttft_ms=60_000.0), 10.0)
    assert made.dispatch(LATE_S) == []
    assert made._starvation.reservation == (2, "d0")
    made.cancelled(2, LATE_S)
    made.offer(work(3, LATE_S, 100), LATE_S)
    assert ids(made.dispatch(LATE_S)) == [3]
