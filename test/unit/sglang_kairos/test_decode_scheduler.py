"""State that a decode server keeps between runs, and the modes that it logs at start."""

import json
import logging
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from sglang.srt.kairos.config import KairosConfig
from sglang.srt.kairos.decode import scheduler as decode_scheduler
from sglang.srt.kairos.decode import state as decode_state
from sglang.srt.kairos.decode.scheduler import DecodeScheduler
from sglang.srt.kairos.decode.state import SAVE_EVERY_S, STATE
from sglang.srt.kairos.shared_clock import SharedClock

from kairos.latency import load_profile
from kairos.slo import Slo, SloClasses
from support.decode_loop import Allocator, Batch, HostLengths
from support.fake_scheduler import fake_scheduler

PROFILE = load_profile("tiny-fast")
CONFIG = KairosConfig(SloClasses(Slo(2000, 50)), PROFILE.name, ("--kairos",))
SLOWNESS = 3.0
STEP = (4, 4_000, 1_000)
OUTPUT = 40


class Server:
    """A decode server that starts with what is in `folder`; time is virtual."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        folder: Path | None = None,
        first_rank: bool = True,
        config: KairosConfig = CONFIG,
        **changes: Any,
    ) -> None:
        self.now = 100.0
        monkeypatch.setattr(decode_scheduler, "first_rank", lambda: first_rank)
        config = replace(config, state_dir=None if folder is None else str(folder))
        clock = SharedClock(1, lambda: self.now)
        scheduler = fake_scheduler("decode", **changes)
        self.kairos = DecodeScheduler(config, PROFILE, scheduler, clock, lambda: self.now)
        self.iteration = 0

    def serve(self, seconds: float) -> None:
        """Steps that take longer than the profile says, each with a request that ends."""
        end = self.now + seconds
        while self.now < end:
            self.iteration += 1
            batch = Batch([], Allocator())
            batch.seq_lens_cpu = HostLengths(np.full(STEP[0], STEP[2]))
            batch.forward_iter, batch.launch_ts = self.iteration, self.now
            self.now += SLOWNESS * PROFILE.decode.step_s(*STEP)
            self.kairos.batcher.policy.completed(0, OUTPUT)
            self.kairos.processed(batch)
        for thread in threading.enumerate():
            if thread.name == "kairos-state":
                thread.join()

    def slowness(self) -> float:
        """Predicted step time, relative to the profile."""
        self.kairos.batcher.selection.select(self.now, changed=True, in_flight_s=0.0)
        policy = self.kairos.batcher.policy
        predicted = policy.calibration.factor * policy.table.step_s(*STEP)
        return predicted / PROFILE.decode.step_s(*STEP)

    def horizon(self) -> float:
        """Tokens that a fresh request is planned to make; 0 while nothing is known."""
        return float(self.kairos.lengths.horizons[0, 0])


def test_restart_continues_with_learned_state(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = Server(monkeypatch, tmp_path)
    assert server.slowness() == pytest.approx(1.0)
    assert server.horizon() == 0.0
    server.serve(1.1 * SAVE_EVERY_S)
    again = Server(monkeypatch, tmp_path)
    assert again.slowness() == pytest.approx(SLOWNESS, rel=0.05)
    assert again.horizon() == pytest.approx(server.horizon())
    assert again.horizon() > 0.0
    assert again.kairos.snapshot()["steps_measured"] > 100


def test_state_is_saved_periodically_by_the_first_rank(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Server(monkeypatch, tmp_path).serve(0.9 * SAVE_EVERY_S)
    Server(monkeypatch, tmp_path, first_rank=False).serve(1.1 * SAVE_EVERY_S)
    Server(monkeypatch).serve(1.1 * SAVE_EVERY_S)
    assert not list(tmp_path.iterdir())
    Server(monkeypatch, tmp_path).serve(1.1 * SAVE_EVERY_S)
    assert [file.name for file in tmp_path.iterdir()] == [f"{STATE}.json"]


@pytest.mark.parametrize("text", ["", "{", '{"schema": 1, "ke'])
def test_damaged_file_is_named_and_ignored(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / f"{STATE}.json"
    file.write_text(text)
    server = Server(monkeypatch, tmp_path)
    assert str(file) in caplog.text
    assert server.slowness() == pytest.approx(1.0)
    server.serve(1.1 * SAVE_EVERY_S)
    assert Server(monkeypatch, tmp_path).slowness() == pytest.approx(SLOWNESS, rel=0.05)


@pytest.mark.parametrize("state", [[], {}, "text", {"steps": 3, "lengths": {"counts": "many"}}])
def test_file_without_state_is_ignored(
    state: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save = decode_state.save_state
    monkeypatch.setattr(decode_state, "save_state", lambda *args: save(*args[:3], state))
    Server(monkeypatch, tmp_path).serve(1.1 * SAVE_EVERY_S)
    server = Server(monkeypatch, tmp_path)
    assert "without the steps learned before" in caplog.text
    assert "without the lengths learned before" in caplog.text
    assert server.slowness() == pytest.approx(1.0)
    assert server.horizon() == 0.0


def test_state_of_another_engine_is_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Server(monkeypatch, tmp_path).serve(1.1 * SAVE_EVERY_S)
    other = Server(monkeypatch, tmp_path, max_running_requests=16)
    assert other.slowness() == pytest.approx(1.0)
    assert not caplog.text


def test_changed_profile_of_the_same_name_ignores_old_state(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Learned step times are relative to the profile."""
    Server(monkeypatch, tmp_path).serve(1.1 * SAVE_EVERY_S)
    decode = msgspec.structs.replace(PROFILE.decode, fixed_s=2.0 * PROFILE.decode.fixed_s)
    anew = msgspec.structs.replace(PROFILE, decode=decode)
    monkeypatch.setattr(sys.modules[__name__], "PROFILE", anew)
    assert Server(monkeypatch, tmp_path).slowness() == pytest.approx(1.0)


def test_other_slo_classes_ignore_learned_lengths_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Server(monkeypatch, tmp_path).serve(1.1 * SAVE_EVERY_S)
    classes = SloClasses(Slo(2000, 50), {"batch": Slo(20_000, 150, "batch")})
    again = Server(monkeypatch, tmp_path, config=replace(CONFIG, classes=classes))
    assert again.slowness() == pytest.approx(SLOWNESS, rel=0.05)
    assert again.horizon() == 0.0
    assert (
        "without the lengths learned before: learned lengths: the state is of other SLO"
        in caplog.text
    )


@pytest.mark.parametrize("wrong", [15.0, 0.05])  # beyond 50 times the profile nothing is restored
def test_learned_step_times_far_off_are_dropped_within_ten_steps(
    wrong: float,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server(monkeypatch, tmp_path)
    server.serve(1.1 * SAVE_EVERY_S)
    file = tmp_path / f"{STATE}.json"
    saved = json.loads(file.read_text())
    steps = saved["state"]["steps"]
    steps["ratios"] = (wrong * np.array(steps["ratios"])).tolist()
    steps["mean"] *= wrong
    file.write_text(json.dumps(saved))
    again = Server(monkeypatch, tmp_path)
    assert again.slowness() == pytest.approx(wrong * SLOWNESS, rel=0.1)
    again.serve(10 * SLOWNESS * PROFILE.decode.step_s(*STEP))
    assert again.slowness() == pytest.approx(SLOWNESS, rel=0.05)
    assert "drops the step times learned before" in caplog.text
    again.serve(SAVE_EVERY_S / 2)
    assert again.slowness() == pytest.approx(SLOWNESS, rel=0.05)


def test_missing_folder_does_not_stop_the_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(monkeypatch, tmp_path / "gone")
    server.serve(1.1 * SAVE_EVERY_S)
    assert "cannot write state" in caplog.text
    assert server.slowness() == pytest.approx(SLOWNESS, rel=0.05)


@pytest.mark.parametrize("hold", [False, True])
def test_server_without_skipping_logs_that_hold_has_no_effect(
    hold: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(CONFIG, hold=hold)
    with caplog.at_level(logging.INFO):
        server = Server(monkeypatch, config=config, is_hybrid_swa=True)
    assert server.kairos.held is None
    assert ("--kairos-hold has no effect: hybrid sliding-window" in caplog.text) is hold
