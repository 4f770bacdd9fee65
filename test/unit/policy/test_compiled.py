"""Compiled kernels: when they are compiled, and where compiled code is kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

STEP = """
import time
import numpy as np
from kairos.latency import load_profile
from kairos.latency.table import StepTable
from kairos.policy.length import LengthEstimator
from kairos.policy.residents import ROW
from kairos.policy.slack import SlackPolicy

table = StepTable.from_model(load_profile("tiny-fast").decode, 8, 10_000)
policy = SlackPolicy(table, 8, lengths=LengthEstimator())
from kairos.policy import slack_kernel

kernels = (slack_kernel.select, slack_kernel.running_step_s, slack_kernel.all_run_for)
before = [len(kernel.signatures) for kernel in kernels]
rows = np.ones(3, ROW)
policy.select(rows, 100.0)
policy.running_step_s(rows)
policy.all_run_for(rows, 100.0, 8)
assert before == [len(kernel.signatures) for kernel in kernels] == [1, 1, 1], before
"""

HEAL = """
import kairos.policy.compiled as module
from kairos.policy.compiled import compiled
from typing import NamedTuple

class {name}(NamedTuple):
    x: float

module.{name} = {name}
{name}.__module__ = module.__name__

import importlib.util, sys
spec = importlib.util.spec_from_file_location("kernel_of_a_test", sys.argv[1])
kernel = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernel)
assert kernel.doubled({name}(2.0)) == 4.0
"""

KERNEL = """
from kairos.policy.compiled import compiled

@compiled
def doubled(p):
    return 2.0 * p.x
"""


def python(code: str, *args: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, **env},
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_no_step_compiles_after_the_construction_of_a_policy() -> None:
    python(STEP)


def test_compiled_code_that_names_a_removed_class_is_compiled_anew(tmp_path: Path) -> None:
    source = tmp_path / "kernel.py"
    source.write_text(KERNEL)
    cache = str(tmp_path / "cache")
    python(HEAL.format(name="OldName"), str(source), NUMBA_CACHE_DIR=cache)
    assert list(Path(cache).rglob("*.nbi")), "nothing was kept"
    python(HEAL.format(name="NewName"), str(source), NUMBA_CACHE_DIR=cache)


def test_damaged_compiled_code_is_compiled_anew(tmp_path: Path) -> None:
    source = tmp_path / "kernel.py"
    source.write_text(KERNEL)
    cache = tmp_path / "cache"
    for _ in range(2):
        python(HEAL.format(name="Name"), str(source), NUMBA_CACHE_DIR=str(cache))
        for file in cache.rglob("*.nbi"):
            file.write_bytes(file.read_bytes()[:40])
    python(HEAL.format(name="Name"), str(source), NUMBA_CACHE_DIR=str(cache))


def test_a_start_without_a_folder_for_compiled_code_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from kairos.policy import compiled

    def refuse(function: object) -> None:
        raise RuntimeError("no locator available")

    monkeypatch.setattr(compiled, "_KernelCache", refuse)
    compiled._warn_uncached.cache_clear()

    def added(x: int) -> int:
        return x + 1

    for _ in range(2):
        assert compiled.compiled(added)(1) == 2
    (record,) = caplog.records
    assert "NUMBA_CACHE_DIR" in record.getMessage()
