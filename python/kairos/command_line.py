"""Parsing that several commands share."""

import argparse
from typing import Any, NoReturn

from kairos.errors import InputError


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line, raised as `InputError`, instead of the usage text.

    Options are not abbreviated: a prefix would change its meaning with the next new option.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def numbers(text: str) -> list[float]:
    """Numbers separated by commas; an argument type.

    Raises:
        argparse.ArgumentTypeError: something else.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not allowed; write a number, or several: 0.7,0.9"
        ) from None


def whole_numbers(text: str) -> list[int]:
    """Whole numbers from 1, separated by commas; an argument type.

    Raises:
        argparse.ArgumentTypeError: something else.
    """
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not allowed; write a whole number from 1, or several: 2,8,32"
        )
    return [int(part) for part in parts]


def count(text: str) -> int:
    """A whole number from 0; an argument type.

    Raises:
        argparse.ArgumentTypeError: something else.
    """
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; write a whole number from 0")
    return int(text)
