"""The commands `kairos simulate` and `scripts/simulate_shards.py`."""

import json
import re

import pytest

from kairos.sim import cli, grid_cli, shards_cli
from kairos.workload.synthetic import generate, write_trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "small.jsonl.gz"
    write_trace(generate("azure-conversation", 60, seed=1), path)
    return str(path)


def simulate(trace, *arguments):
    return cli.main(["--trace", trace, "--profile", "tiny-fast", "--workers", "1", *arguments])


def test_one_run_writes_its_figures(trace, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert simulate(trace, "--load", "0.8", "--slo", "F5", "--json", str(out)) == 0
    figures = json.loads(out.read_bytes())
    assert figures["requests"] == 60
    assert figures["load"] == 0.8
    assert figures["slo"] == "F5"
    assert "simulated: small.jsonl.gz, F5" in capsys.readouterr().out


def test_several_values_are_combined(trace, tmp_path):
    out, plot = tmp_path / "out.json", tmp_path / "plot.png"
    lists = ("--load", "0.5,0.9", "--prefill-policy", "fcfs,urgency", "--decode-policy", "slack")
    assert simulate(trace, *lists, "--json", str(out), "--plot", str(plot)) == 0
    runs = json.loads(out.read_bytes())["runs"]
    assert [(run["prefill_policy"], run["load"]) for run in runs] == [
        ("fcfs", 0.5),
        ("fcfs", 0.9),
        ("urgency", 0.5),
        ("urgency", 0.9),
    ]
    assert plot.stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--load", "x"], "--load: 'x' is not allowed; write a number, or several"),
        (["--load", "0"], "load: 0.0 is out of range, allowed are 0.001 to 1000"),
        (["--slo", "L9"], "--slo: invalid choice: 'L9'"),
        (["--prefill-policy", "fcfs,best"], "--prefill-policy: 'best' is not allowed"),
        (["--decode-policy", ""], "--decode-policy: '' is not allowed; allowed are continuous"),
        (["--part", "3/2"], "--part: '3/2' is not allowed; write K/N"),
        (["--requests", "-1"], "--requests: '-1' is not allowed; write a whole number from 0"),
        (["--period", "0"], "--period: 0 is out of range, allowed are 1 to 10000"),
        (["--change-cost-ms", "-1"], "--change-cost-ms: -1.0 is out of range"),
        (["--tail-ms", "nan"], "--tail-ms: nan is out of range"),
        (["--starve-share", "2"], "--starve-share: 2.0 is out of range, allowed are 0 to 1"),
        (["--instances", "0P1D"], "instances: '0P1D' is not allowed; it must look like 1P1D"),
        (["--profile", "none"], "none"),
        (["--unknown"], "unrecognized arguments: --unknown; see --help"),
    ],
)
def test_bad_values_are_one_line_and_exit_code_two(arguments, message, trace, capsys):
    assert simulate(trace, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("simulate: ")
    assert message in error
    assert error.count("\n") == 1


def test_missing_trace_is_one_line_and_exit_code_two(tmp_path, capsys):
    assert simulate(str(tmp_path / "none.jsonl")) == 2
    assert "none.jsonl: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("command", [cli, grid_cli, shards_cli])
def test_help_explains_every_option_with_examples(command, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown
    headings = re.findall(r"^(\w[\w ]+):$", shown, re.MULTILINE)
    assert {"workload", "output"} <= set(headings)
    # Every option has a text, beside it or on the next line.
    for option in re.findall(r"^  (--[^\n]*(?:\n {10,}.*)?)", shown, re.MULTILINE):
        assert re.search(r" {2,}\S", option), option


def test_shards_of_every_size_are_measured(trace, tmp_path, capsys):
    out, plot = tmp_path / "out.json", tmp_path / "plot.png"
    arguments = ["--trace", trace, "--profile", "tiny-fast", "--pairs", "2", "--requests", "1"]
    assert shards_cli.main([*arguments, "--json", str(out), "--plot", str(plot)]) == 0
    rows = json.loads(out.read_bytes())
    assert [(row["shards"], row["pairs_per_shard"], row["balancer"]) for row in rows] == [
        (2, 1, "random"),
        (2, 1, "least"),
        (1, 2, "random"),
    ]
    assert plot.stat().st_size > 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "0"], "--pairs: '0' is not allowed; write a whole number from 1"),
        (["--load", "nan"], "--load: nan is out of range"),
        (["--requests", "0"], "--requests: 0 is out of range"),
        (["--compare", "--first", "1"], "--first: 1 is out of range"),
        (["--engine", "lifo"], "--engine: invalid choice: 'lifo'"),
    ],
)
def test_bad_values_for_shards_are_one_line_and_exit_code_two(arguments, message, trace, capsys):
    assert shards_cli.main(["--trace", trace, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("simulate_shards: ")
    assert message in error
    assert error.count("\n") == 1
