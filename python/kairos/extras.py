"""The optional libraries of the `bench` extra, and the error when they are missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from kairos.errors import InputError

BENCH_MODULES = frozenset({"jinja2", "matplotlib", "psutil", "rich"})


@contextmanager
def bench_extra() -> Iterator[None]:
    """Turn a missing library of the `bench` extra into an error that names the remedy.

    Imports of these libraries go into its block.

    Raises:
        InputError: one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in BENCH_MODULES:
            raise
        raise InputError(
            f"{missing} is not installed; run: pip install 'kairos-sglang[bench]'"
        ) from None
