"""Every upstream symbol that Kairos relies on is recorded, and drift is noticed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import kairos_patches
from kairos_patches import HOOKS, HookProcess, cli, symbols
from kairos_patches.cli import main
from kairos_patches.fingerprint import MissingSymbolError, locate, upstream_root
from kairos_patches.manifest import drifts
from support.upstream_source import copy_relied_on

ROOT = upstream_root()
REPOSITORY = Path(kairos_patches.__file__).parent.parent
SEAM = "sglang.srt.managers.scheduler.Scheduler._create_generation_req"


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A copy of the upstream files that Kairos relies on."""
    return copy_relied_on(tmp_path / "sglang")


def edit(scratch: Path, old: str, new: str) -> None:
    path = scratch / "srt/managers/scheduler.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_installed_upstream_is_as_recorded() -> None:
    assert drifts(symbols(), ROOT) == []


def test_unchanged_copy_is_as_recorded(scratch: Path) -> None:
    assert drifts(symbols(), scratch) == []


def test_renamed_symbol_is_named(scratch: Path) -> None:
    edit(scratch, "def _create_generation_req(", "def _create_request(")
    assert [drift.symbol for drift in drifts(symbols(), scratch)] == [SEAM]


def test_changed_body_is_named(scratch: Path) -> None:
    edit(scratch, "        return Req(*args, **kwargs)\n", "        return Req(*args)\n")
    found = drifts(symbols(), scratch)
    assert [drift.symbol for drift in found] == [SEAM]
    assert "changed since SGLang 0.5.23" in str(found[0])


def test_change_elsewhere_in_the_file_is_no_drift(scratch: Path) -> None:
    edit(scratch, "def _make_abort_req(", "def _build_abort_req(")
    assert drifts(symbols(), scratch) == []


def test_missing_module_is_named(scratch: Path) -> None:
    (scratch / "srt/managers/schedule_policy.py").unlink()
    assert "sglang.srt.managers.schedule_policy" in str(drifts(symbols(), scratch)[0])


def test_unrecorded_symbol_is_a_drift() -> None:
    unrecorded = "sglang.srt.managers.scheduler.Scheduler.set_internal_state"
    assert "not in manifest.json" in str(drifts([unrecorded], ROOT)[0])


def test_locate_refuses_a_missing_symbol() -> None:
    with pytest.raises(MissingSymbolError, match="no_such"):
        locate("sglang.srt.managers.scheduler.Scheduler.no_such", ROOT)


def test_every_hook_names_an_existing_test() -> None:
    for hook in HOOKS:
        assert (REPOSITORY / hook.test).is_file(), hook.symbol


def test_each_function_is_hooked_once() -> None:
    hooked = [hook.symbol for hook in HOOKS]
    assert len(hooked) == len(set(hooked))


def test_review_names_every_hook_and_is_up_to_date(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "review.md"
    assert main(["--out", str(out)]) == 0
    text = out.read_text()
    for hook in HOOKS:
        file = hook.module.removeprefix("sglang.").replace(".", "/")
        assert f"### `{hook.name}`\n\n- File: `{file}.py:" in text
    assert (REPOSITORY / "UPSTREAM_DIFF.md").read_text() == text
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{len(HOOKS)} hooked symbols")


def test_check_prints_a_summary_on_its_last_line() -> None:
    script = REPOSITORY / "scripts/upstream_diff.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == (
        f"{len(HOOKS)} hooked symbols, {len(symbols())} relied on, "
        f"{len(symbols())} as in SGLang 0.5.23, 0 drifted"
    )


def test_check_fails_on_drift_and_names_it(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(scratch, "def _create_generation_req(", "def _create_request(")
    monkeypatch.setattr(cli, "upstream_root", lambda: scratch)
    assert main(["--check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"drifted: {SEAM}")
    assert lines[-1].endswith("1 drifted")


def test_drifted_upstream_is_not_reviewed(
    scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(scratch, "def _create_generation_req(", "def _create_request(")
    monkeypatch.setattr(cli, "upstream_root", lambda: scratch)
    out = tmp_path / "review.md"
    assert main(["--out", str(out)]) == 1
    assert not out.exists()


RENAMED = """
import sys
from pathlib import Path
from kairos_patches import fingerprint, verify
import kairos_patches
kairos_patches.upstream_root = lambda: Path(sys.argv[1])
verify()
print("verified")
"""


def test_renamed_symbol_stops_the_process(scratch: Path) -> None:
    edit(scratch, "def _create_generation_req(", "def _create_request(")
    done = subprocess.run([sys.executable, "-c", RENAMED, scratch], capture_output=True, text=True)
    assert done.returncode == 1
    assert "verified" not in done.stdout
    assert SEAM in done.stderr
    assert len(done.stderr.splitlines()) == 1


OTHER_PLUGIN = """
import importlib, sys
from kairos_patches import HookProcess, install, verify_applied
importlib.import_module("sglang.srt.managers.scheduler")
install(HookProcess.SCHEDULER)
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
hook = lambda *args, **kwargs: None
HookRegistry._apply_target(sys.argv[1], [(HookType(sys.argv[2]), hook, None)])
verify_applied()
print("verified")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "code"), [("around", 0), ("replace", 1)])
def test_a_plugin_may_wrap_a_hooked_function_but_not_replace_it(kind: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PLUGIN, SEAM, kind],
        env={**os.environ, "SGLANG_PLATFORM": "kairos-cpu"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == code, done.stderr[-2000:]
    assert ("verified" in done.stdout) == (code == 0)
    assert (f"another plugin has replaced {SEAM}" in done.stderr) == (code == 1)


def test_manifest_lists_exactly_the_symbols_in_use() -> None:
    manifest = json.loads((REPOSITORY / "kairos_patches/manifest.json").read_text())
    assert sorted(manifest["symbols"]) == sorted(symbols())


def test_scheduler_hooks_are_on_scheduler_modules() -> None:
    homes = ("sglang.srt.managers.", "sglang.srt.disaggregation.")
    assert all(symbol.startswith(homes) for symbol in symbols(HookProcess.SCHEDULER))


def overlay(folder: Path, file: str, old: str, new: str) -> None:
    """A copy of the installed package in `folder`, of symbolic links but for one edited file."""
    target, source = folder / "sglang", ROOT
    for part in Path(file).parts:
        target.mkdir(parents=True)
        for entry in source.iterdir():
            if entry.name not in (part, "__pycache__"):
                (target / entry.name).symlink_to(entry)
        target, source = target / part, source / part
    text = source.read_text()
    assert old in text
    target.write_text(text.replace(old, new))


@pytest.mark.slow
def test_server_refuses_to_start_on_a_drifted_upstream(tmp_path: Path) -> None:
    renamed = ("def _create_generation_req(", "def _create_request(")
    overlay(tmp_path, "srt/managers/scheduler.py", *renamed)
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "SGLANG_PLATFORM": "kairos-cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "sglang.launch_server", "--model-path", "none", "--kairos"],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 1, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if "kairos: error" in line]
    assert len(lines) == 1
    assert SEAM in lines[0]


@pytest.mark.slow
def test_drifted_command_line_serves_upstream_without_kairos(tmp_path: Path) -> None:
    changed = ("def from_cli_args(cls, args:", "def from_cli_args(cls, args, *_:")
    overlay(tmp_path, "srt/server_args.py", *changed)
    probe = (
        "from sglang.srt.plugins import load_plugins; load_plugins()\n"
        "from sglang.srt.server_args import prepare_server_args\n"
        "print(prepare_server_args(['--model-path', 'none']).model_path)\n"
        "prepare_server_args(['--model-path', 'none', '--kairos'])"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", probe],
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "none"
    assert done.returncode == 2
    assert "kairos: not available: sglang.srt.server_args.ServerArgs.from_cli_args" in done.stderr
    assert "unrecognized arguments: --kairos" in done.stderr
