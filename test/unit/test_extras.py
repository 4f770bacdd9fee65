"""The bench extra: imported only where it is used, and named where it is missing."""

import subprocess
import sys

import pytest

from kairos import extras as module
from kairos.errors import InputError
from kairos.extras import bench_extra, check_bench_extra

IMPORTS = """
import importlib, sys
for name in ("plan.plan", "plan.arms", "client.client", "report.model", "report.writer"):
    importlib.import_module(f"kairos.replay.{name}")
print(sorted({"jinja2", "matplotlib", "rich"} & set(sys.modules)))
"""


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    check_bench_extra("kairos replay")
    monkeypatch.setattr(module, "BENCH_MODULES", ("kairos_no_such_package",))
    expected = r"kairos replay needs the bench extra .*pip install 'kairos-sglang\[bench\]'"
    with pytest.raises(InputError, match=expected):
        check_bench_extra("kairos replay")
    with pytest.raises(InputError, match=expected), bench_extra("kairos replay"):
        import kairos_no_such_package  # noqa: F401 - the import must fail


def test_other_missing_packages_are_not_blamed_on_the_extra() -> None:
    with pytest.raises(ModuleNotFoundError), bench_extra("kairos replay"):
        import kairos_no_such_package  # noqa: F401 - the import must fail


@pytest.mark.slow
def test_modules_import_without_the_extra() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True
    )
    assert shown.stdout == "[]\n"
