"""The requests of a simulation: their checks, and the load of the decode stage."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from unit.sim.scenarios import poisson

from kairos.errors import InputError
from kairos.latency import load_profile
from kairos.sim.scenario import Scenario, decode_capacity_per_s

PROFILE = load_profile("minimax-m2.5-tp4-h200")


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return poisson(400, 8.0, None, 40)


def test_decode_load_is_relative_to_littles_law(scenario):
    rate = decode_capacity_per_s(scenario, PROFILE)
    scaled = scenario.at_decode_load(0.5, PROFILE)
    span = scaled.arrival_s[-1] - scaled.arrival_s[0]
    assert len(scaled) / span == pytest.approx(0.5 * rate)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *itertools.product(["ttft_s", "tpot_s"], [0, -1, float("nan")]),
        *itertools.product(["input_tokens", "output_tokens"], [0, -1, float("nan"), float("inf")]),
    ],
)
def test_impossible_values_are_rejected_with_their_place(field, value, scenario):
    bad = getattr(scenario, field).astype(float).copy()
    bad[7] = value
    if field.endswith("tokens") and not np.isfinite(value):
        bad = np.where(np.isfinite(bad), bad, -1)
    with pytest.raises(InputError, match=f"request 7: {field}"):
        replace(scenario, **{field: bad})


def test_arrivals_out_of_order_are_rejected(scenario):
    with pytest.raises(InputError, match="request 1: arrival_s"):
        replace(scenario, arrival_s=scenario.arrival_s[::-1].copy())


@pytest.mark.parametrize("load", [0.0, -1.0, float("nan"), float("inf")])
def test_decode_load_is_positive_and_finite(load, scenario):
    with pytest.raises(InputError, match="decode load"):
        scenario.at_decode_load(load, PROFILE)
