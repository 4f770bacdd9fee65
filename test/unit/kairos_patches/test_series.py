"""The exported patches apply to a copy of SGLang's source, and Kairos works in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kairos_patches import HOOKS
from kairos_patches.cli import main
from kairos_patches.series import decorated
from support.vendored import vendor

MODULE = '''\
"""A module."""

from __future__ import annotations

import sys


class Server:
    @classmethod
    def start(cls):
        async def start():
            pass


def start():
    return sys.path
'''


def test_decorators_stand_right_above_the_functions() -> None:
    text = decorated(MODULE, ["Server.start", "start"])
    assert text == MODULE.replace(
        "import sys\n", "from kairos_patches.vendored import hookable\nimport sys\n", 1
    ).replace("    def start(cls", "    @hookable\n    def start(cls").replace(
        "\ndef start", "\n@hookable\ndef start"
    )


def test_an_occupied_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("")
    assert main(["--export", str(tmp_path)]) == 1
    assert f"{tmp_path} is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


PROBE = """
import sys
import sglang.srt.managers.scheduler as scheduler
import sglang.srt.managers.tokenizer_manager
from sglang.srt.plugins import load_plugins
load_plugins()
import kairos, kairos_patches
from sglang.srt.server_args import prepare_server_args
print(kairos.__file__, kairos_patches.__file__, scheduler.__file__)
off = prepare_server_args(["--model-path", "none"])
assert kairos_patches.installed == {kairos_patches.HookProcess.LAUNCHER}
on = prepare_server_args(["--model-path", "none", "--kairos"])
kairos_patches.verify()
for process in kairos_patches.HookProcess:
    kairos_patches.install(process)
kairos_patches.verify_applied()
print(len(kairos_patches.decorated))
"""


@pytest.mark.slow
def test_the_patches_apply_and_kairos_is_installed(tmp_path: Path) -> None:
    python = vendor(tmp_path)
    log = subprocess.run(
        ["git", "log", "--format=%s"], cwd=python.parent, capture_output=True, text=True, check=True
    )
    assert len([line for line in log.stdout.splitlines() if line.startswith("Kairos: ")]) > 10
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        # No installed plugin may do the work of the patches.
        env={
            **os.environ,
            "PYTHONPATH": str(python),
            "SGLANG_PLATFORM": "kairos-cpu",
            "SGLANG_PLUGINS": "none",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    files, count = done.stdout.splitlines()[-2:]
    assert all(file.startswith(str(python)) for file in files.split())
    assert count == str(len(HOOKS))
