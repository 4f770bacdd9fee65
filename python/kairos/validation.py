"""Checks of single values: numbers, ranges and choices.

Every check raises `InputError` with the name, the value and what is allowed.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kairos.errors import InputError

_MAX_SHOWN = 80  # characters
# No sign, no exponent, ASCII digits only: the form that load generators send, and nothing that two
# parsers on the way could read differently.
_DECIMAL = re.compile(r"[0-9]{1,10}(?:\.[0-9]{1,9})?", re.ASCII)


class Range(NamedTuple):
    """The closed range of a number.

    Attributes:
        low: least allowed value.
        high: largest allowed value; may be infinite.
    """

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.10g} to {self.high:.10g}"


def shown(value: object) -> str:
    """Return `value` for an error message: quoted, escaped and cut to 80 characters."""
    text = ascii(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def as_number(value: object) -> float | None:
    """Return a number as a float; None for anything else, booleans and texts included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def parse_number(value: object, where: str, allowed: Range, unit: str) -> float:
    """Validate a number, or a text of plain decimal digits.

    Args:
        value: as received.
        where: names the field in the message.
        allowed: its range; NaN is never allowed.
        unit: of the range, for the message.

    Raises:
        InputError: not a number, or out of range.
    """
    if isinstance(value, str):
        text = value.strip(" \t")
        number = float(text) if _DECIMAL.fullmatch(text) else None
    else:
        number = as_number(value)
    if number is None or not allowed.low <= number <= allowed.high:
        raise InputError(f"{where}: {shown(value)} is not allowed; allowed are {allowed} {unit}")
    return number


def check_range(where: str, value: float, allowed: Range) -> None:
    """Raise `InputError` if `value` is NaN or outside `allowed`."""
    if not allowed.low <= value <= allowed.high:
        raise InputError(f"{where}: {value!r} is out of range, allowed are {allowed}")


def check_ranges(subject: str, values: object, ranges: Mapping[str, Range]) -> None:
    """Check attributes of one object.

    Args:
        subject: names the object in the message.
        values: has the attributes.
        ranges: by attribute.

    Raises:
        InputError: for the first value that is NaN or out of its range.
    """
    for name, allowed in ranges.items():
        check_range(f"{subject}: {name}", getattr(values, name), allowed)


def check_choice(where: str, value: str, choices: Sequence[str]) -> None:
    """Raise `InputError` if `value` is none of `choices`."""
    if value not in choices:
        raise InputError(f"{where}: {shown(value)} is not one of {', '.join(choices)}")
