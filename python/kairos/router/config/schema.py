"""Fields of the configuration: each knows its unit, its allowed values and its help text.

The command line, the configuration file and the checks of values built in code all read this,
so that a knob is described once.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from kairos.errors import InputError

Reader = Callable[[object, str], Any]  # (value, where it comes from) -> value, or InputError


@dataclass(frozen=True, slots=True)
class Knob:
    """What is known of a configuration field.

    Attributes:
        read: turns a value of a flag (str), a file (any) or code into the field's value.
        help: one line; the unit included.
        metavar: how the flag's value is shown; None for a switch.
        many: the field is a tuple and `read` reads one item of it.
        words: how many words of the command line one value takes: "1", or "+" for one or more.
    """

    read: Reader
    help: str
    metavar: str | None
    many: bool = False
    words: str = "1"


def knob_of(field: "dataclasses.Field[Any]") -> Knob | None:
    """The knob behind a dataclass field; None for a field that is set in code only."""
    knob = field.metadata.get("knob")
    return knob if isinstance(knob, Knob) else None


def flag_of(name: str) -> str:
    """The command line's spelling of a field name."""
    return f"--{name.replace('_', '-')}"


def check(group: Any, label: Callable[[str], str] = flag_of) -> None:
    """Check every field of a configuration group and store what `read` makes of it.

    Args:
        label: what errors call a field, from its name.

    Raises:
        InputError: the first value that is not allowed.
    """
    for field in dataclasses.fields(group):
        knob = knob_of(field)
        value = getattr(group, field.name)
        if knob is None or (value is None and field.default is None):
            continue
        where = label(field.name)
        read = tuple(knob.read(v, where) for v in value) if knob.many else knob.read(value, where)
        object.__setattr__(group, field.name, read)  # the group is frozen


def knob(
    default: Any, read: Reader, text: str, metavar: str | None, words: str = "1", many: bool = False
) -> Any:
    """A field with a reader of its own."""
    return dataclasses.field(
        default=default, metadata={"knob": Knob(read, text, metavar, many, words)}
    )


def count(default: int | None, text: str, low: int, high: int, metavar: str = "N") -> Any:
    """A whole number from `low` to `high`."""

    def read(value: object, where: str) -> int:
        number = _number(value)
        if number is None or number != int(number) or not low <= number <= high:
            raise InputError(
                f"{where}: {shown(value)} is not allowed; allowed are whole numbers from {low} "
                f"to {high}"
            )
        return int(number)

    return knob(default, read, text, metavar)


def real(default: float | None, text: str, low: float, high: float, metavar: str, unit: str) -> Any:
    """A number from `low` to `high`."""

    def read(value: object, where: str) -> float:
        number = _number(value)
        if number is None or not low <= number <= high:
            raise InputError(
                f"{where}: {shown(value)} is not allowed; allowed are {low:.10g} to {high:.10g} "
                f"{unit}".rstrip()
            )
        return number

    return knob(default, read, text, metavar)


def seconds(default: float, text: str, low: float = 0.01, high: float = 86_400.0) -> Any:
    """A duration; `default`, `low` and `high` in seconds."""
    return real(default, text, low, high, "S", "seconds")


def choice(default: object, options: tuple[Any, ...], text: str) -> Any:
    """One of `options`: strings, integers, or members of an enumeration, which go by value."""
    names = [str(option.value if isinstance(option, Enum) else option) for option in options]

    def read(value: object, where: str) -> Any:
        if value in options and not isinstance(value, bool):
            return value
        if isinstance(value, str) and value in names:
            return options[names.index(value)]
        raise InputError(f"{where}: {shown(value)} is not one of {', '.join(names)}")

    return knob(default, read, text, "{" + ",".join(names) + "}")


def switch(text: str) -> Any:
    """Off unless given."""

    def read(value: object, where: str) -> bool:
        if not isinstance(value, bool):
            raise InputError(f"{where}: {shown(value)} is not allowed; allowed are true and false")
        return value

    return knob(False, read, text, None)


def file(text: str) -> Any:
    """A path of a readable file, or none."""

    def read(value: object, where: str) -> Path:
        if not isinstance(value, (str, Path)) or not str(value):
            raise InputError(f"{where}: {shown(value)} is not a path")
        path = Path(value)
        if not path.is_file():
            raise InputError(f"{where}: there is no file {shown(str(path))}")
        return path

    return knob(None, read, text, "FILE")


def word(default: str | None, text: str, metavar: str) -> Any:
    """A string without control characters."""

    def read(value: object, where: str) -> str:
        if not isinstance(value, str) or not value or not value.isprintable():
            raise InputError(f"{where}: {shown(value)} is not a printable, non-empty text")
        return value

    return knob(default, read, text, metavar)


def shown(value: object) -> str:
    """`value` for an error message: quoted, escaped, short."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
