"""Measured durations of the prefill batches of one server."""

import logging
import math
import re
import threading
import time
import zlib
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import msgspec
from sglang.srt.kairos.rank_batches import RankBatches
from sglang.srt.kairos.shared_clock import SharedClock
from sglang.srt.kairos.upstream import PrefillBatch

from kairos.errors import InputError
from kairos.latency import (
    Calibration,
    Chunk,
    PrefillModel,
    Profile,
    Provenance,
    load_profile,
    save_profile,
)
from kairos.latency.prefill_learner import PrefillLearner

_SAVE_EVERY_S = 60.0
# Two ranks with this little between them are both the slowest.
_ALIKE = 0.98
_LEARNED_NAME = "prefill"  # among the learned values that the ranks share
_NOTHING_LEARNED: tuple[float, ...] = ()

_log = logging.getLogger(__name__)


class _AnnouncedBatch(NamedTuple):
    """A formed batch whose result has not arrived.

    Attributes:
        chunks: its prompts' parts.
        predicted_s: its predicted duration, seconds.
    """

    chunks: Sequence[Chunk]
    predicted_s: float


class _LastResult(NamedTuple):
    """The result that arrived last.

    Attributes:
        end_s: monotonic seconds.
        iteration: upstream's number of the forward pass.
    """

    end_s: float
    iteration: int


class PrefillObserver:
    """Learns from every batch that was announced with `formed`, and keeps the learned model."""

    def __init__(
        self,
        profile: Profile,
        clock: SharedClock,
        overlap: bool,
        file: Path | None,
        ranks: RankBatches | None = None,
    ) -> None:
        """Begin with the profile, or with the model of an earlier run.

        Args:
            profile: the latency models to begin with.
            clock: shares learned values between ranks.
            overlap: a batch is launched while the one before it still runs.
            file: keeps the learned model between runs; None keeps nothing.
            ranks: what the data-parallel attention ranks of the server run; None: there is one.
        """
        import scipy.optimize  # noqa: F401  # half a second, for which no batch must wait

        self._ranks = ranks
        self._profile = profile
        self._clock = clock
        self._overlap = overlap
        self._file = file
        earlier = None if file is None else _earlier_model(file)
        self._learner = PrefillLearner(profile.prefill, earlier)
        self._ratio = Calibration()
        self._announced: dict[int, _AnnouncedBatch] = {}
        self._last = _LastResult(0.0, -1)
        self._saved_s = -math.inf
        if earlier is not None:
            self._publish()

    def model(self) -> tuple[PrefillModel, float]:
        """Return the model for decisions and the factor on its predictions.

        Both are the same on every rank.
        """
        values = self._clock.learned(_LEARNED_NAME, _NOTHING_LEARNED)
        if not values:
            return self._profile.prefill, 1.0
        *coefficients, factor = values
        return PrefillModel(*coefficients), factor

    def formed(self, iteration: int, chunks: Sequence[Chunk], predicted_s: float) -> None:
        """Announce a batch.

        Args:
            iteration: upstream's number of the forward pass that will be launched.
            chunks: taken now, because the requests move on before the result arrives.
            predicted_s: the prediction that decisions used, seconds.
        """
        self._announced[iteration] = _AnnouncedBatch(chunks, predicted_s)

    def finished(self, batch: PrefillBatch) -> None:
        """Measure a batch whose result has been processed.

        Under the overlap schedule a batch waits on the device for the one before it, so its time
        runs from that batch's end. Otherwise, and after a pause, its time runs from its launch.
        """
        end_s = time.monotonic()
        last = self._last
        follows = last.iteration + 1 == batch.forward_iter and not batch.after_idle_gap
        begin_s = batch.launch_ts
        if self._overlap:
            begin_s = last.end_s if follows else max(begin_s, last.end_s)
        self._last = _LastResult(end_s, batch.forward_iter)
        for stale in [n for n in self._announced if n < batch.forward_iter]:
            del self._announced[stale]
        announced = self._announced.pop(batch.forward_iter, None)
        if announced is None:
            return
        if not self._is_slowest(batch.forward_iter):
            return  # it has waited for another rank
        self._ratio.observe(announced.predicted_s, end_s - begin_s)
        was_warm = self._learner.is_warm
        refitted = self._learner.observe(announced.chunks, end_s - begin_s)
        if was_warm and not self._learner.is_warm:
            _log.warning(
                "Kairos drops the prefill model learned before: batches take another multiple of "
                "its predictions than on the engine where it was learned"
            )
        self._publish()
        if refitted and end_s - self._saved_s > _SAVE_EVERY_S:
            self._saved_s = end_s
            self.save()

    def _is_slowest(self, iteration: int) -> bool:
        """Return whether this rank has set the duration of a batch of all ranks.

        They end it together, so only the slowest one sees how long its own chunks take.
        """
        if self._ranks is None:
            return True
        model = self._learner.model
        work_s = [model.work_s(tokens, pairs) for tokens, pairs in self._ranks.of(iteration)]
        return bool(work_s) and work_s[self._ranks.rank] >= _ALIKE * max(work_s)

    def save(self) -> None:
        """Write the learned model for the next run, in a thread beside the event loop."""
        if self._file is None:
            return
        model = msgspec.structs.astuple(self._learner.model)
        learned = msgspec.structs.replace(
            self._profile,
            prefill=PrefillModel(*(value * self._learner.factor for value in model)),
            provenance=Provenance(
                "learned", "prefill batches of a serving run", date.today().isoformat()
            ),
        )
        threading.Thread(target=_write, args=(learned, self._file), daemon=True).start()

    def snapshot(self) -> dict[str, float]:
        """Return the figures for /server_info.

        prediction_ratio is measured over predicted time, of the predictions that decisions used.
        """
        return {
            "batches_measured": self._ratio.samples,
            "prediction_ratio": round(self._ratio.factor, 4),
            "prediction_spread": round(self._ratio.spread, 4),
            "calibration": round(self._learner.factor, 4),
            "refits": self._learner.refits,
            "warm_start": self._learner.is_warm,
        }

    def _publish(self) -> None:
        model = msgspec.structs.astuple(self._learner.model)
        self._clock.learn(_LEARNED_NAME, (*model, self._learner.factor))


def state_file(state_dir: str, profile: Profile, engine: str) -> Path:
    """Return where a prefill server keeps its learned model, as a profile file.

    Args:
        state_dir: folder of learned models.
        profile: the profile that learning began with. A new one may have the name of an old one.
        engine: describes the engine; another engine has another file.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", profile.name)
    key = zlib.crc32(f"{engine}|{profile.prefill}".encode())
    return Path(state_dir) / f"{name}.{key:08x}.prefill.json"


def _earlier_model(file: Path) -> PrefillModel | None:
    """Return the model of an earlier run; None where there is none."""
    if not file.exists():
        return None
    try:
        return load_profile(file).prefill
    except InputError as error:
        _log.warning("Kairos begins without the learned prefill model: %s", error)
        return None


def _write(profile: Profile, file: Path) -> None:
    try:
        save_profile(profile, file)
    except InputError as error:
        _log.warning("Kairos cannot keep the learned prefill model: %s", error)
