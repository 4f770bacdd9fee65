"""The optional packages of the `bench` extra, and the error when one is missing."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from kairos.errors import InputError

BENCH_MODULES = ("jinja2", "matplotlib", "psutil", "rich")


@contextmanager
def bench_extra(purpose: str) -> Iterator[None]:
    """Guard an import of an optional package.

    Args:
        purpose: the feature that needs the package, as the subject of the error message.

    Raises:
        InputError: the package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in BENCH_MODULES:
            raise
        raise InputError(_message(purpose, error.name or "")) from error


def check_bench_extra(purpose: str) -> None:
    """Raise `InputError` if an optional package is not installed."""
    missing = next((name for name in BENCH_MODULES if find_spec(name) is None), None)
    if missing is not None:
        raise InputError(_message(purpose, missing))


def _message(purpose: str, missing: str) -> str:
    return (
        f"{purpose} needs the bench extra ({missing} is not installed): "
        "pip install 'kairos-sglang[bench]'"
    )
