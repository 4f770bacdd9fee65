"""The command `kairos`: it lists every tool, and runs the one that is named."""

import importlib
import subprocess
import sys

import pytest

from kairos import __version__, cli


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown and command.summary in shown for name, command in cli.COMMANDS.items())


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert capsys.readouterr().out.startswith("usage: kairos COMMAND")


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"kairos {__version__}\n"


def test_unknown_command_is_named_with_the_closest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulat"]) == 2
    shown = capsys.readouterr().err
    assert "unknown command 'simulat'" in shown
    assert "did you mean 'simulate'?" in shown


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_main_and_explains_itself(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module, _, function = cli.COMMANDS[name].main.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    with pytest.raises(SystemExit) as exited:
        cli.main([name, "--help"])
    assert exited.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_missing_measuring_library_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_rich(name: str) -> object:
        raise ModuleNotFoundError("No module named 'rich.table'", name="rich.table")

    monkeypatch.setattr(importlib, "import_module", without_rich)
    assert cli.main(["simulate"]) == 2
    assert "rich is not installed" in (shown := capsys.readouterr().err)
    assert "kairos-sglang[bench]" in shown


def test_missing_module_of_our_own_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> object:
        raise ModuleNotFoundError("No module named 'kairos.sim.cli'", name="kairos.sim.cli")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["simulate"])


def test_listing_the_commands_imports_none_of_them() -> None:
    probe = (
        "import sys, kairos.cli\n"
        "kairos.cli.main(['--help'])\n"
        "heavy = {'numpy', 'aiohttp', 'sglang', 'rich'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
