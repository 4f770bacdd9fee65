"""The one bounded share of service for starved requests."""

import pytest

from kairos.policy.starvation import StarvationCredit


def test_a_share_of_all_service_is_available_and_may_be_overdrawn_once() -> None:
    credit = StarvationCredit(0.1)
    assert not credit.available
    credit.earn(10.0)
    assert credit.available
    credit.spend(3.0)
    assert not credit.available
    credit.earn(20.0)
    assert not credit.available
    credit.earn(1.0)
    assert credit.available


def test_the_balance_stays_between_floor_and_limit() -> None:
    credit = StarvationCredit(0.5, limit=2.0, floor=-3.0)
    credit.earn(1e9)
    assert credit.balance == 2.0
    credit.spend(1e9)
    assert credit.balance == -3.0


def test_time_earns_from_the_first_call_on_and_never_goes_back() -> None:
    credit = StarvationCredit(0.02, balance=-1.0)
    credit.earn_until(5_000.0)
    assert credit.balance == -1.0
    credit.earn_until(5_025.0)
    credit.earn_until(5_000.0)
    assert credit.balance == pytest.approx(-0.5)


def test_without_a_share_nothing_is_ever_available() -> None:
    credit = StarvationCredit(0.0)
    credit.earn(1e300)
    credit.earn_until(0.0)
    credit.earn_until(1e300)
    assert not credit.available
