"""The grid of regret: cells, cache, table and heat map."""

import json
import re
from importlib import resources

import pytest

from kairos.sim import cli, result_cache
from kairos.sim.regret import COMPARED, RegretCell, RegretGrid, cells_of, worst
from kairos.workload.synthetic import generate, write_trace


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("traces")
    paths = [folder / "short.jsonl.gz", folder / "long.jsonl.gz"]
    for path, preset in zip(paths, ("azure-conversation", "mooncake-conversation"), strict=True):
        write_trace(generate(preset, 40, seed=1), path)
    return [str(path) for path in paths]


def grid(traces, folder, *arguments):
    options = ("--workers", "1", "--cache", str(folder / "cache"))
    return cli.main(["grid", *traces, *options, *arguments])


def result(e2e, prefill="fcfs"):
    return {
        "trace": "a/one.jsonl.gz",
        "tpot_ms": 20.0,
        "load": 0.7,
        "prefill_policy": prefill,
        "e2e_attainment": e2e,
    }


def test_regret_is_the_best_order_of_sglang_minus_kairos():
    results = [result(90.0, "urgency"), result(88.0), result(91.5, "lpm"), result(70.0), result(0)]
    [cell] = cells_of(results)
    assert cell == RegretCell("one", 20.0, 0.7, 90.0, 91.5, "lpm", 1.5)


def test_every_cell_compares_the_same_requests_as_on_the_engine(traces):
    points = RegretGrid(tuple(traces), (20.0,), (0.7, 1.1), 40, "L3", "tiny-fast").points()
    assert len(points) == 4 * len(COMPARED)
    for at in range(0, len(points), len(COMPARED)):
        cell = points[at : at + len(COMPARED)]
        assert len({(point.trace, point.tpot_ms, point.load) for point in cell}) == 1
        for point in cell:
            config = point.config
            assert point.busier
            assert config.preallocate
            assert config.lookahead
            assert config.first_token == "decode"
            assert not config.hold
        assert [point.config.grants_in_order for point in cell] == [False, True, True, True, True]


@pytest.mark.slow
def test_a_grid_writes_its_cells_and_a_heat_map_that_labels_each(traces, tmp_path, capsys):
    out, plot = tmp_path / "grid.json", tmp_path / "grid.svg"
    arguments = ("--quick", "--requests", "40", "--profile", "tiny-fast")
    assert grid(traces, tmp_path, *arguments, "--json", str(out), "--plot", str(plot)) == 0
    figures = json.loads(out.read_bytes())
    assert figures["simulated"] is True
    cells = figures["cells"]
    assert [(c["trace"], c["tpot_ms"], c["load"]) for c in cells] == [
        (trace, tpot_ms, load)
        for trace in ("short", "long")
        for tpot_ms in (20.0, 50.0)
        for load in (0.7, 1.1)
    ]
    assert figures["worst"] == max(cells, key=lambda cell: cell["regret"])
    shown = re.findall(r"<text[^>]*>(-?\d+(?:\.\d+)?)</text>", plot.read_text())
    labels = [f"{c['regret']:.2f}" if abs(c["regret"]) < 9.995 else "" for c in cells]
    for label in filter(None, labels):
        assert ("0" if float(label) == 0 else label) in shown
    assert "largest regret" in capsys.readouterr().out


@pytest.mark.slow
def test_a_grid_resumes_from_its_cache(traces, tmp_path, monkeypatch, capsys):
    arguments = ("--quick", "--requests", "20", "--profile", "tiny-fast")
    assert grid(traces[:1], tmp_path, *arguments) == 0
    first = capsys.readouterr().out
    stored = sorted((tmp_path / "cache").iterdir())
    stored[0].unlink()
    simulated = []
    run = result_cache.run_checked

    def counted(point):
        simulated.append(point)
        return run(point)

    monkeypatch.setattr(result_cache, "run_checked", counted)
    cache = result_cache.ResultCache(tmp_path / "cache")
    points = RegretGrid(tuple(traces[:1]), (20.0, 50.0), (0.7, 1.1), 20, "L3", "tiny-fast").points()
    for point in points:
        cache.run(point)
    assert len(simulated) == 1
    assert grid(traces[:1], tmp_path, *arguments) == 0
    assert capsys.readouterr().out == first


def test_other_code_and_another_profile_are_simulated_anew(traces, tmp_path, monkeypatch):
    profile = tmp_path / "profile.json"
    shipped = (resources.files("kairos.latency") / "profiles" / "tiny-fast.json").read_text()
    profile.write_text(shipped)
    grid = RegretGrid(tuple(traces[:1]), (20.0,), (0.7,), 20, "L3", str(profile))
    (point, *_) = grid.points()
    keys = [result_cache._key(point)]
    assert result_cache._key(point) == keys[0]
    profile.write_text(shipped.replace('"max_batch": ', '"max_batch": 1'))
    keys.append(result_cache._key(point))
    monkeypatch.setattr(result_cache, "_code", lambda: b"changed")
    keys.append(result_cache._key(point))
    assert len(set(keys)) == 3


def test_a_regret_above_the_limit_is_exit_code_one(traces, tmp_path):
    arguments = ("--quick", "--requests", "20", "--profile", "tiny-fast")
    assert grid(traces[:1], tmp_path, *arguments, "--limit", "100") == 0
    assert grid(traces[:1], tmp_path, *arguments, "--limit", "-100.5") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "two traces have this name"),
        (("--tpot-ms", "x"), "'x' is not allowed; write a number"),
        (("--load", "0"), "out of range"),
        (("--slo", "tiers"), "invalid choice: 'tiers'"),
    ],
)
def test_bad_values_are_one_line_and_exit_code_two(arguments, message, traces, tmp_path, capsys):
    given = traces[:1] if arguments else [traces[0], traces[0]]
    assert grid(given, tmp_path, "--profile", "tiny-fast", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("simulate grid: ")
    assert message in error
    assert error.count("\n") == 1


def test_the_worst_cell_has_the_largest_regret():
    cells = [RegretCell("a", 20.0, load, 0.0, 0.0, "fcfs", load) for load in (0.3, 1.1, 0.7)]
    assert worst(cells).load == 1.1
