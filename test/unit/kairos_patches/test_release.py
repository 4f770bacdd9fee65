"""What another SGLang release would change is told from its source."""

from pathlib import Path

import pytest

from kairos_patches import DEPENDENCIES, HOOKS, symbols
from kairos_patches.cli import main
from kairos_patches.fingerprint import upstream_root
from kairos_patches.release import Change, SymbolChange, breaks, compare, document, summary
from support.upstream_source import copy_relied_on

ROOT = upstream_root()
SCHEDULER = "srt/managers/scheduler.py"
CREATE = "sglang.srt.managers.scheduler.Scheduler._create_generation_req"


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A checkout of a release that is so far the recorded one."""
    return copy_relied_on(tmp_path / "checkout/python/sglang")


def edit(package: Path, old: str, new: str) -> None:
    path = package / SCHEDULER
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def changed(package: Path) -> list[SymbolChange]:
    found = compare(HOOKS, DEPENDENCIES, ROOT, package)
    assert len(found) == len(symbols())
    return [one for one in found if one.change is not Change.NONE]


def test_the_recorded_release_changes_nothing(release: Path) -> None:
    assert changed(release) == []


def test_a_missing_function_comes_first_and_breaks(release: Path) -> None:
    edit(release, "        return Req(*args, **kwargs)\n", "        return Req(*args)\n")
    edit(release, "def get_internal_state(", "def internal_state(")
    first, second = changed(release)
    assert first.symbol.endswith("Scheduler.get_internal_state")
    assert first.change is Change.MISSING
    assert breaks([first])
    assert second.change is Change.BODY
    assert not breaks([second])


def test_other_arguments_break(release: Path) -> None:
    edit(release, "def get_internal_state(self, ", "def get_internal_state(self, more, ")
    (only,) = changed(release)
    assert only.change is Change.ARGUMENTS
    assert breaks([only])


def test_the_document_shows_old_and_new_source(release: Path) -> None:
    edit(release, "        return Req(*args, **kwargs)\n", "        return Req(*args)\n")
    text = document("a checkout", changed(release))
    assert f"## `{CREATE}`" in text
    assert "-    return Req(*args, **kwargs)\n+    return Req(*args)" in text
    assert "1 changed" in summary("a checkout", changed(release))


def test_the_command_takes_a_checkout(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout, out = str(release.parent.parent), tmp_path / "changes.md"
    assert main(["--against", checkout, "--out", str(out)]) == 0
    assert "0 changed, 0 other arguments, 0 missing" in capsys.readouterr().out
    edit(release, "def _create_generation_req(", "def _create_request(")
    assert main(["--against", checkout, "--out", str(out)]) == 1
    assert CREATE in capsys.readouterr().out
    assert CREATE in out.read_text()


@pytest.mark.parametrize("release", ["no.such.version", "."])
def test_an_unknown_release_is_refused(
    release: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--against", release]) == 1
    assert release in capsys.readouterr().err
