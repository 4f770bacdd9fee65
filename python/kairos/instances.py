"""Numbers of prefill and decode servers, written as `2P1D`."""

import re

from kairos.errors import InputError

MAX_INSTANCES = 999


def parse_instances(text: str, name: str = "--instances") -> tuple[int, int]:
    """Read a layout such as `2P1D`.

    Args:
        text: prefill instances, `P`, decode instances, `D`.
        name: the option or field that errors name.

    Returns:
        The numbers of prefill and of decode instances, each from 1 to MAX_INSTANCES.

    Raises:
        InputError: another form, or a number out of range.
    """
    match = re.fullmatch(r"([1-9]\d{0,2})P([1-9]\d{0,2})D", text, re.ASCII)
    if match is None:
        raise InputError(
            f"{name}: {text!r} is not allowed; it must look like 1P1D: 1 to {MAX_INSTANCES} "
            "prefill instances, then 1 to as many decode instances"
        )
    return int(match[1]), int(match[2])
