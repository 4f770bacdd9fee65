"""A missing library of the `bench` extra is an input error that names the remedy."""

import pytest

from kairos.errors import InputError
from kairos.extras import bench_extra


def missing(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_missing_library_of_the_extra_names_the_extra() -> None:
    remedy = r"rich is not installed; .*'kairos-sglang\[bench\]'"
    with pytest.raises(InputError, match=remedy), bench_extra():
        raise missing("rich.table")


def test_other_missing_module_is_not_hidden() -> None:
    with pytest.raises(ModuleNotFoundError), bench_extra():
        raise missing("kairos.nothing")


def test_installed_library_is_imported() -> None:
    with bench_extra():
        import psutil
    assert psutil.pid_exists(1)
