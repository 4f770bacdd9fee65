"""One simulation of a sweep, and the figures that its JSON promises."""

import gzip
import json

import numpy as np
import pytest

from kairos.errors import InputError
from kairos.sim.config import SimConfig
from kairos.sim.sweep_point import SweepPoint, run

CONTRACT = {
    "ttft_attainment",
    "tpot_attainment",
    "tpot_attainment_engine_clock",
    "e2e_attainment",
    "goodput_tokens_per_s",
    "tokens_per_s",
    "longest10_ttft_attainment",
    "ttft_p99_s",
    "max_stall_s",
    "lp_bound_ttft",
    "requests",
    "load",
}


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    rng = np.random.default_rng(2)
    path = tmp_path_factory.mktemp("trace") / "small.jsonl.gz"
    arrival = np.cumsum(rng.exponential(0.3, 120))
    with gzip.open(path, "wt") as file:
        for at, tokens, made in zip(
            arrival, rng.integers(10, 20_000, 120), rng.integers(1, 60, 120), strict=True
        ):
            row = {"arrival_s": at, "input_tokens": int(tokens), "output_tokens": int(made)}
            file.write(json.dumps(row) + "\n")
    return str(path)


def point(trace: str, **changed) -> SweepPoint:
    fields = {
        "trace": trace,
        "part": (1, 1),
        "first": 0,
        "profile": "tiny-fast",
        "load": 0.9,
        "slo": "L3",
        "tpot_ms": 30.0,
        "seed": 0,
        "bound": False,
        "config": SimConfig(),
    }
    return SweepPoint(**{**fields, **changed})


def test_every_figure_of_the_contract_is_there_and_serialises(trace):
    result = run(point(trace, bound=True))
    assert result.keys() >= CONTRACT
    assert result["lp_bound_ttft"] >= result["ttft_attainment"] - 1e-9
    assert json.loads(json.dumps(result))["requests"] == 120


def test_part_and_first_cut_the_trace(trace):
    assert run(point(trace, part=(2, 3)))["requests"] == 40
    assert run(point(trace, first=25))["requests"] == 25
    with pytest.raises(InputError, match="parts"):
        run(point(trace, part=(1, 500)))


@pytest.mark.parametrize("slo", ["L3", "F5", "LC", "tiers"])
@pytest.mark.parametrize("stages", ["both", "prefill", "decode"])
def test_every_slo_set_and_stage_runs(trace, slo, stages):
    result = run(point(trace, slo=slo, config=SimConfig(stages=stages)))
    assert 0.0 <= result["e2e_attainment"] <= 100.0


@pytest.mark.parametrize("bad", [{"load": float("nan")}, {"slo": "L9"}, {"profile": "none"}])
def test_bad_values_are_input_errors(trace, bad):
    with pytest.raises(InputError):
        run(point(trace, **bad))


def test_rates_refer_to_the_time_to_the_last_token(trace):
    """An overloaded server needs longer than the arrivals last."""
    result = run(point(trace, load=3.0))
    with gzip.open(trace, "rt") as file:
        tokens = sum(json.loads(line)["output_tokens"] for line in file)
    assert result["tokens_per_s"] == pytest.approx(tokens / result["makespan_s"])
