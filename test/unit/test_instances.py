"""Layouts such as 2P1D."""

import pytest

from kairos.errors import InputError
from kairos.instances import parse_instances


@pytest.mark.parametrize(
    ("text", "numbers"), [("1P1D", (1, 1)), ("2P3D", (2, 3)), ("12P999D", (12, 999))]
)
def test_layout_gives_numbers_of_prefill_and_decode_instances(text, numbers):
    assert parse_instances(text) == numbers


@pytest.mark.parametrize(
    "text", ["", "PD", "0P1D", "1P0D", "1P", "1p1d", "01P1D", "1P1000D", "1P1D "]
)
def test_other_texts_are_errors_that_show_the_form(text):
    with pytest.raises(
        InputError, match=r"^--instances: .* is not allowed; it must look like 1P1D"
    ):
        parse_instances(text)


def test_error_names_the_given_field():
    with pytest.raises(InputError, match=r"^layout: 'x'"):
        parse_instances("x", "layout")
