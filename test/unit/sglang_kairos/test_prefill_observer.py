"""Durations of batches, and the model that a restart begins with."""

import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from sglang.srt.kairos.engine_key import engine_key
from sglang.srt.kairos.prefill import observer as prefill_observer
from sglang.srt.kairos.prefill.observer import PrefillObserver, state_file
from sglang.srt.kairos.rank_batches import RankBatches
from sglang.srt.kairos.shared_clock import SharedClock

from kairos.latency import Chunk, PrefillModel, load_profile, save_profile
from kairos.latency.prefill_learner import REFIT_EVERY
from support.fake_scheduler import FakeScheduler
from support.prefill_loop import FakeBatch

PROFILE = load_profile("tiny-fast")
CHUNKS = [Chunk(0, 1000)]


class OneDevice:
    """Runs batches one after the other and reports them to an observer."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        overlap: bool,
        file: Path | None = None,
        ranks: RankBatches | None = None,
    ):
        self.now = 100.0
        local_time = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(prefill_observer, "time", local_time)
        self.clock = SharedClock(1, lambda: self.now)
        self.observer = PrefillObserver(PROFILE, self.clock, overlap, file, ranks)
        self.iteration = 0

    def launch(self, idle: bool = False) -> FakeBatch:
        self.iteration += 1
        model, factor = self.observer.model()
        self.observer.formed(self.iteration, CHUNKS, factor * model.batch_s(CHUNKS))
        return FakeBatch([], self.iteration, self.now, idle)


def test_overlapped_batches_are_measured_from_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    device = OneDevice(monkeypatch, overlap=True)
    slow_s = 2 * PROFILE.prefill.batch_s(CHUNKS)
    queued = [device.launch(idle=True), device.launch()]
    for _ in range(60):
        device.now += slow_s
        device.observer.finished(queued.pop(0))
        queued.append(device.launch())
    figures = device.observer.snapshot()
    assert figures["batches_measured"] == 60
    assert figures["calibration"] == pytest.approx(2.0, rel=0.1)
    assert figures["prediction_ratio"] < 1.5, "of predictions that were corrected on the way"


@pytest.mark.parametrize(
    ("tokens", "pairs", "slowest"),
    [
        ([2_000, 100], [2_000_000, 5_000], {0}),
        ([100, 2_000], [150_000_000, 2_000_000], {0}),
        ([100, 2_000], [5_000, 2_000_000], {1}),
        ([2_000, 2_000], [2_000_000, 2_000_000], {0, 1}),
        ([2_000, 0], [2_000_000, 0], {0}),
        ([], [], set()),
    ],
)
def test_a_rank_learns_from_the_batches_of_which_it_was_the_slowest(
    tokens: list[int], pairs: list[int], slowest: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = set()
    for rank in (0, 1):
        ranks = RankBatches(rank)
        device = OneDevice(monkeypatch, overlap=False, ranks=ranks)
        batch = device.launch()
        ranks.gathered(batch.forward_iter, tokens, pairs)
        device.now += PROFILE.prefill.batch_s(CHUNKS)
        device.observer.finished(batch)
        if device.observer.snapshot()["batches_measured"]:
            learned.add(rank)
    assert learned == slowest


def test_idle_time_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for overlap in (True, False):
        device = OneDevice(monkeypatch, overlap=overlap)
        for _ in range(30):
            batch = device.launch(idle=True)
            device.now += PROFILE.prefill.batch_s(CHUNKS)
            device.observer.finished(batch)
            device.now += 3.0
        assert device.observer.snapshot()["calibration"] == pytest.approx(1.0, abs=0.01)


def test_a_batch_that_was_not_announced_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    device = OneDevice(monkeypatch, overlap=True)
    batch = device.launch()
    batch.forward_iter += 1
    device.observer.finished(batch)
    assert device.observer.snapshot()["batches_measured"] == 0


def test_a_restart_begins_with_the_learned_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = state_file(str(tmp_path), PROFILE, "engine")
    device = OneDevice(monkeypatch, overlap=False, file=file)
    for _ in range(REFIT_EVERY + 1):
        batch = device.launch(idle=True)
        device.now += 3 * PROFILE.prefill.batch_s(CHUNKS)
        device.observer.finished(batch)
    deadline = time.monotonic() + 10
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert load_profile(file).provenance.kind == "learned"
    restarted = PrefillObserver(PROFILE, SharedClock(1), False, file)
    model, factor = restarted.model()
    assert restarted.snapshot()["warm_start"]
    assert factor * model.batch_s(CHUNKS) == pytest.approx(
        3 * PROFILE.prefill.batch_s(CHUNKS), rel=0.1
    )


def test_a_damaged_file_is_a_cold_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = state_file(str(tmp_path), PROFILE, "engine")
    file.write_text("{")
    observer = PrefillObserver(PROFILE, SharedClock(1), True, file)
    assert observer.model() == (PROFILE.prefill, 1.0)
    assert "begins without the learned" in caplog.text


@pytest.mark.parametrize("wrong", [20.0, 0.05])
def test_a_learned_model_that_does_not_fit_is_dropped_within_ten_batches(
    wrong: float,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    coefficients = msgspec.structs.astuple(PROFILE.prefill)
    learned = PrefillModel(*(min(wrong * value, 1.0) for value in coefficients))
    file = state_file(str(tmp_path), PROFILE, "engine")
    save_profile(msgspec.structs.replace(PROFILE, prefill=learned), file)
    device = OneDevice(monkeypatch, overlap=False, file=file)
    assert device.observer.snapshot()["warm_start"]
    for _ in range(10):
        batch = device.launch(idle=True)
        device.now += PROFILE.prefill.batch_s(CHUNKS)
        device.observer.finished(batch)
    assert not device.observer.snapshot()["warm_start"]
    assert "drops the prefill model" in caplog.text
    model, factor = device.observer.model()
    assert factor * model.batch_s(CHUNKS) == pytest.approx(PROFILE.prefill.batch_s(CHUNKS))


@pytest.mark.parametrize(
    ("field", "value"), [("model_path", "other"), ("dtype", "float16"), ("kv_cache_dtype", "fp8")]
)
def test_another_engine_has_another_file(field: str, value: str) -> None:
    scheduler, other = FakeScheduler("prefill"), FakeScheduler("prefill")
    setattr(other.server_args, field, value)
    files = {state_file("/", PROFILE, engine_key(one)) for one in (scheduler, other)}
    scheduler.tp_size, other.chunked_prefill_size = 2, 4096
    files |= {state_file("/", PROFILE, engine_key(one)) for one in (scheduler, other)}
    assert len(files) == 4
