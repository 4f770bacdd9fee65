"""When a server is taken out, and what puts it back."""

from kairos.router.workers.breaker import Breaker, BreakerState


def opened() -> Breaker:
    breaker = Breaker(failures=3, open_s=5.0)
    assert [breaker.failed(0.0) for _ in range(3)] == [False, False, True]
    return breaker


def test_failures_in_a_row_open_it_and_a_proof_closes_it() -> None:
    breaker = opened()
    assert not breaker.may_probe(4.9)
    assert breaker.may_probe(5.0)
    breaker.proven()
    assert breaker.state is BreakerState.CLOSED
    assert [breaker.failed(6.0) for _ in range(3)] == [False, False, True]


def test_a_success_in_between_starts_the_count_anew() -> None:
    breaker = Breaker(failures=2, open_s=5.0)
    assert not breaker.failed(0.0)
    breaker.succeeded()
    assert not breaker.failed(0.0)
    assert breaker.failed(0.0)


def test_an_older_stream_that_ends_well_during_a_probe_decides_nothing() -> None:
    breaker = opened()
    assert breaker.may_probe(5.0)
    breaker.succeeded()
    breaker.failed(6.0)  # the probe
    assert breaker.state is BreakerState.OPEN
    assert not breaker.may_probe(10.9)
    assert breaker.may_probe(11.0)
