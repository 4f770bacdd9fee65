"""A TPOT objective that no decode server can meet must not keep an idle one idle."""

from support.dispatching import dispatcher, ids, work


def test_a_step_that_is_too_long_even_alone_is_not_waited_out() -> None:
    router = dispatcher()
    asked = work(1, tpot_ms=0.1, ttft_ms=600_000.0, sequences=100)
    assert router.offer(asked, 0.0).queued
    assert ids(router.dispatch(0.0)) == [1]
