"""Sweeps and the profiles that they give: recovery, budget, interruption, failures."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from kairos.calibrate.drive import DriveError
from kairos.calibrate.grid import DecodePoint, GridAxes, Point, estimate_s, make_grid
from kairos.calibrate.measure import DecodeMeasurement, Meter
from kairos.calibrate.plot import picture
from kairos.calibrate.result import CalibrationResult, fit_profile, write_samples
from kairos.calibrate.servers import MeasuredServers
from kairos.calibrate.sweep import FAILURES, SweepResult, sweep
from kairos.errors import InputError
from kairos.latency import load_profile, save_profile
from kairos.latency.first_token import FirstTokenPath
from kairos.replay.client.target import Endpoint
from support.virtual_engine import VirtualEngine

PROFILE = load_profile("minimax-m2.5-tp4-h200")
BASE = msgspec.structs.replace(load_profile("tiny-fast"), decode=PROFILE.decode)
PATH = FirstTokenPath(0.02, 2e-6)
LONGEST = 262_144
SERVERS = MeasuredServers(
    endpoints=(Endpoint("server", "http://127.0.0.1:1"),),
    limits=PROFILE.limits,
    longest_prompt=LONGEST,
    kairos=False,
    model="m",
    version="0.5.23",
    commands={"server": "launch"},
)
AXES = GridAxes(batches=(1, 2, 8, 32), contexts=(256, 4096, 32_768))


def swept(engine: VirtualEngine, budget_s: float = 1e6, axes: GridAxes = AXES) -> SweepResult:
    points = make_grid(axes, PROFILE.limits, LONGEST).points
    return sweep(
        points,
        Meter(engine).measure,
        lambda point: estimate_s(point, PROFILE),
        budget_s=budget_s,
        now=engine.now,
    )


def fitted(found: SweepResult) -> CalibrationResult:
    return fit_profile(found.samples, SERVERS, BASE, "again", "test")


def test_profile_of_the_engine_is_recovered(tmp_path: Path) -> None:
    found = swept(VirtualEngine(PROFILE, PATH))
    assert (found.end, found.skipped) == ("complete", [])
    result = fitted(found)
    for against in (result.errors(), result.errors_against(PROFILE)):
        assert max(e.worst for e in against.values()) < 0.01, against
    assert result.path.fixed_s == pytest.approx(PATH.fixed_s, rel=0.02)
    save_profile(result.profile, tmp_path / "p.json")
    profile = load_profile(tmp_path / "p.json")
    assert profile.provenance.kind == "measured"
    assert "0.5.23" in profile.provenance.source
    assert "server: launch" in profile.provenance.source
    assert profile.kv == BASE.kv
    assert profile.limits == PROFILE.limits


def test_profile_is_recovered_approximately_with_a_noisy_client() -> None:
    found = swept(VirtualEngine(PROFILE, PATH, jitter_s=0.002))
    errors = fitted(found).errors_against(PROFILE)
    assert all(e.median < 0.05 and e.p90 < 0.1 for e in errors.values()), errors


def test_sweep_keeps_its_budget_and_still_gives_a_profile() -> None:
    engine = VirtualEngine(PROFILE, PATH)
    began = engine.now_s
    found = swept(engine, budget_s=60.0)
    assert engine.now_s - began <= 60.0
    assert found.end == "budget"
    assert {s.reason for s in found.skipped} == {"beyond the budget of 60 s"}
    assert max(e.p90 for e in fitted(found).errors_against(PROFILE).values()) < 0.05


def test_point_that_exceeds_its_estimate_ends_with_the_budget() -> None:
    engine = VirtualEngine(PROFILE, PATH)
    began = engine.now_s
    found = sweep(
        [DecodePoint(8, 4096)] * 50,
        Meter(engine).measure,
        lambda _point: 0.001,
        budget_s=5.0,
        now=engine.now,
    )
    assert engine.now_s - began <= 5.5
    assert found.end == "budget"
    assert len(found.samples) + len(found.skipped) == 50


def test_interrupt_keeps_the_samples(tmp_path: Path) -> None:
    engine = VirtualEngine(PROFILE, PATH)
    engine.fails[150] = KeyboardInterrupt()
    found = swept(engine)
    assert found.end == "interrupted"
    assert found.samples
    assert {s.reason for s in found.skipped} == {"interrupted"}
    assert len(found.samples) + len(found.skipped) == len(
        make_grid(AXES, PROFILE.limits, LONGEST).points
    )
    write_samples(tmp_path / "s.jsonl", SERVERS, found.samples, found.skipped)
    lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert lines[0]["servers"]["version"] == "0.5.23"
    assert sum("seconds" in line for line in lines) == len(found.samples)
    assert sum("skipped" in line for line in lines) == len(found.skipped)


def test_several_failures_in_a_row_end_the_sweep() -> None:
    engine = VirtualEngine(PROFILE, PATH)
    engine.fails[100] = DriveError("connection_error: gone")
    found = swept(engine)
    assert found.end == "failed"
    reasons = [s.reason for s in found.skipped]
    assert reasons[:FAILURES] == ["connection_error: gone"] * FAILURES
    assert set(reasons[FAILURES:]) == {"not tried"}


def test_isolated_failures_do_not_end_the_sweep() -> None:
    calls: list[Point] = []

    def measure(point: Point, _limit_s: Callable[[], float]) -> DecodeMeasurement:
        calls.append(point)
        if len(calls) % FAILURES == 0:
            raise DriveError("once in a while")
        return DecodeMeasurement(1, 1.0, 1.0, [1.0])

    points = [DecodePoint(1, 256)] * 20
    found = sweep(points, measure, lambda _point: 1.0, budget_s=100.0, now=lambda: 0.0)
    assert (found.end, len(found.samples), len(found.skipped)) == ("complete", 14, 6)


def test_too_few_samples_give_no_profile() -> None:
    found = swept(VirtualEngine(PROFILE, PATH))
    with pytest.raises(InputError, match="samples"):
        fit_profile(found.samples[:4], SERVERS, BASE, "again", "test")


def test_picture_is_a_png() -> None:
    result = fitted(swept(VirtualEngine(PROFILE, PATH, jitter_s=0.003)))
    assert picture(result, "test").startswith(b"\x89PNG")
