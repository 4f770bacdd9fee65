"""Checks of single values: which pass, and what the message of the others says."""

import math
from types import SimpleNamespace

import pytest

from kairos.errors import InputError
from kairos.validation import (
    Range,
    as_number,
    check_choice,
    check_range,
    check_ranges,
    parse_number,
    shown,
)

PERCENT = Range(0.0, 100.0)


@pytest.mark.parametrize(
    ("value", "number"),
    [(3, 3.0), (2.5, 2.5), (True, None), ("3", None), (None, None), (10**400, None)],
)
def test_only_numbers_count_as_numbers(value: object, number: float | None) -> None:
    assert as_number(value) == number


@pytest.mark.parametrize("value", [7, 7.0, "7", " 7.000\t"])
def test_a_number_or_its_decimal_text_is_parsed(value: object) -> None:
    assert parse_number(value, "field", PERCENT, "percent") == 7.0


@pytest.mark.parametrize("value", ["1e1", "+1", "-1", "٣", "", "nan", math.nan, 101, True, [7]])
def test_a_refused_number_is_named_with_what_is_allowed(value: object) -> None:
    with pytest.raises(InputError, match=r"^field: .* allowed are 0 to 100 percent$"):
        parse_number(value, "field", PERCENT, "percent")


@pytest.mark.parametrize("value", [0.0, 100])
def test_a_range_includes_its_bounds(value: float) -> None:
    check_range("field", value, PERCENT)


@pytest.mark.parametrize("value", [-1e-9, 100.1, math.nan, math.inf])
def test_a_value_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(InputError, match=r"^field: .* allowed are 0 to 100$"):
        check_range("field", value, PERCENT)


def test_the_attribute_out_of_range_is_named() -> None:
    params = SimpleNamespace(share=0.5, late=-1.0)
    with pytest.raises(InputError, match=r"^policy: late: -1.0 is out of range"):
        check_ranges("policy", params, {"share": Range(0.0, 1.0), "late": Range(0.0, 1.0)})


def test_a_choice_that_is_not_offered_is_refused() -> None:
    check_choice("order", "edf", ("edf", "sjf"))
    with pytest.raises(InputError, match="order: 'lifo' is not one of edf, sjf"):
        check_choice("order", "lifo", ("edf", "sjf"))


def test_a_long_value_is_cut_and_escaped() -> None:
    assert shown("a\n") == r"'a\n'"
    assert len(shown("x" * 1_000)) == 80
