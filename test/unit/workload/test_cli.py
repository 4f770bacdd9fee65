"""The command of `scripts/make_trace.py`."""

from pathlib import Path

import pytest

from kairos.workload import cli
from kairos.workload.readers import read_trace
from kairos.workload.synthetic import PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_trace_of_a_preset_is_written(preset: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl.gz"
    assert cli.main([preset, str(path), "--requests", "20", "--seed", "3"]) == 0
    assert len(read_trace(path).requests) == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mooncake"], "invalid choice: 'mooncake'"),
        (["servegen-r1", "--requests", "0"], "requests: 0 is out of range, allowed are 1 to"),
        (["servegen-r1", "--seed", "-1"], "seed: -1 is out of range, allowed are 0 to 2^63 - 1"),
        (["servegen-r1", "--requests", "many"], "--requests: invalid int value: 'many'"),
    ],
)
def test_bad_values_are_one_line_and_exit_code_two(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset, *options = arguments
    assert cli.main([preset, str(tmp_path / "trace.jsonl.gz"), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("make_trace: ")
    assert message in error
    assert error.count("\n") == 1


def test_help_names_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown
    assert all(preset in shown for preset in PRESETS)
