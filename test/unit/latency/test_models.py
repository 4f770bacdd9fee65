"""Fits, tables, calibration and profile files."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kairos.errors import InputError
from kairos.latency import Chunk, load_profile, merge_profiles, save_profile
from kairos.latency.calibration import Calibration
from kairos.latency.fit import (
    PrefillSample,
    StepSample,
    TransferSample,
    fit_decode,
    fit_kv,
    fit_prefill,
)
from kairos.latency.profile import parse_profile
from kairos.latency.table import StepTable

PROFILE = load_profile("minimax-m2.5-tp4-h200")
RNG = np.random.default_rng(4)


def prefill_samples(noise: float = 0.0) -> list[PrefillSample]:
    samples = []
    for _ in range(300):
        chunks = [
            Chunk(int(RNG.integers(0, 100_000)), int(RNG.integers(1, 4_000)))
            for _ in range(int(RNG.integers(1, 4)))
        ]
        seconds = PROFILE.prefill.batch_s(chunks) * (1 + noise * RNG.standard_normal())
        samples.append(PrefillSample(chunks, seconds))
    return samples


def test_a_fit_finds_the_prefill_model_behind_its_samples():
    model, fit = fit_prefill(prefill_samples(), PROFILE.prefill.weight_floor_s)
    for name in ("fixed_s", "per_token_s", "per_token_context_s"):
        assert getattr(model, name) == pytest.approx(getattr(PROFILE.prefill, name), rel=0.02)
    assert fit.relative_rms < 1e-3


def test_outliers_do_not_move_a_fit():
    samples = prefill_samples(noise=0.02)
    spoiled = [s._replace(seconds=s.seconds * 20) for s in samples[:6]] + samples[6:]
    model, fit = fit_prefill(spoiled, PROFILE.prefill.weight_floor_s)
    assert fit.outliers >= 6
    assert model.per_token_s == pytest.approx(PROFILE.prefill.per_token_s, rel=0.1)


def test_a_fit_finds_the_decode_model_and_the_link():
    steps = []
    for _ in range(300):
        batch = int(RNG.integers(1, 200))
        context = int(batch * RNG.integers(500, 20_000))
        steps.append(StepSample(batch, context, PROFILE.decode.step_s(batch, context)))
    model, fit = fit_decode(steps, PROFILE.decode.expert_fraction)
    assert fit.relative_rms < 1e-6
    assert model.step_s(64, 500_000) == pytest.approx(PROFILE.decode.step_s(64, 500_000), rel=1e-4)
    moved = [TransferSample(n, PROFILE.kv.transfer_s(n)) for n in (10, 1_000, 50_000)]
    link, _ = fit_kv(moved, PROFILE.kv.bytes_per_token)
    assert link.transfer_s(8_000) == pytest.approx(PROFILE.kv.transfer_s(8_000), rel=1e-6)


@pytest.mark.parametrize("seconds", [math.nan, 0.0, -1.0, math.inf])
def test_a_fit_rejects_impossible_samples(seconds):
    with pytest.raises(InputError, match="fit"):
        fit_decode([StepSample(1, 10, seconds)] * 9, 0.1)
    with pytest.raises(InputError, match="samples"):
        fit_decode([StepSample(1, 10, 0.01)], 0.1)


@given(st.integers(1, 256), st.floats(0, 2e6))
def test_the_table_is_the_model_and_extends_it(batch, context):
    table = StepTable.from_model(PROFILE.decode, 256, 1_180_000, knots=9)
    assert table.step_s(batch, context) == pytest.approx(
        PROFILE.decode.step_s(batch, int(context)), rel=1e-5
    )


def test_a_batch_costs_as_much_as_the_next_larger_captured_size():
    table = StepTable.from_model(PROFILE.decode, 16, 100_000, graph_batches=(1, 4, 16))
    assert table.step_s(2, 1_000) == table.step_s(4, 1_000) < table.step_s(5, 1_000)
    assert table.step_s(5, 1_000) == table.step_s(16, 1_000)


def test_calibration_finds_a_bias_and_its_spread():
    calibration = Calibration()
    for _ in range(2_000):
        calibration.observe(0.02, 0.024 * (1 + 0.1 * RNG.standard_normal()))
    assert calibration.bias == pytest.approx(0.2, abs=0.06)
    assert calibration.spread == pytest.approx(0.12, abs=0.06)
    assert calibration.quantile(2.0) > calibration.factor


def test_one_outlier_moves_calibration_little_and_invalid_samples_not_at_all():
    calibration = Calibration()
    for _ in range(300):
        calibration.observe(0.02, 0.02)
    calibration.observe(0.02, 20.0)
    assert calibration.factor < 1.05
    for bad in (math.nan, 0.0, -1.0, math.inf):
        before = calibration.samples
        calibration.observe(0.02, bad)
        calibration.observe(bad, 0.02)
        assert calibration.samples == before


def test_a_profile_survives_saving(tmp_path):
    path = tmp_path / "own.json"
    save_profile(PROFILE, path)
    assert load_profile(path) == PROFILE
    assert [child.name for child in tmp_path.iterdir()] == ["own.json"]


def test_merging_takes_parts_and_names_both_sources():
    other = msgspec.structs.replace(load_profile("tiny-fast"), name="other")
    merged = merge_profiles(PROFILE, other, ["decode"], "both")
    assert merged.decode == other.decode
    assert merged.prefill == PROFILE.prefill
    assert "other" in merged.provenance.source
    assert PROFILE.name in merged.provenance.source
    with pytest.raises(InputError, match="allowed"):
        merge_profiles(PROFILE, other, ["gpu"], "both")


@pytest.mark.parametrize(
    ("part", "field"), [("prefill", "per_token_s"), ("decode", "per_request_s"), ("kv", "fixed_s")]
)
@pytest.mark.parametrize("value", [-1.0, 1e9])
def test_a_profile_that_gets_faster_with_load_is_rejected(part, field, value, tmp_path):
    changed = msgspec.structs.replace(getattr(PROFILE, part), **{field: value})
    bad = msgspec.structs.replace(PROFILE, **{part: changed})
    with pytest.raises(InputError, match=rf"line \d+, field {part}.{field}"):
        save_profile(bad, tmp_path / "bad.json")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', "null"])
def test_a_broken_profile_names_file_and_line(text):
    with pytest.raises(InputError, match=r"own\.json, line 1"):
        parse_profile(text, "own.json")


def test_a_quantile_covers_its_share_of_a_normal_error():
    rng = np.random.default_rng(3)
    calibration = Calibration(alpha=0.02)
    ratios = 1.2 + 0.1 * rng.standard_normal(4_000)
    covered = []
    for ratio in ratios:
        covered.append(ratio <= calibration.quantile(2.0))
        calibration.observe(1.0, float(ratio))
    # Two standard deviations of a normal distribution: 97.7 %.
    assert 0.95 < np.mean(covered[500:]) < 0.995
