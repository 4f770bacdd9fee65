"""What the prefill batches of one server really take."""

import logging
import math
import re
import threading
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from sglang.srt.kairos.shared_clock import SharedClock

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
_SHARED = "prefill"  # name among the learned values of the ranks

_log = logging.getLogger(__name__)


class _Flight(NamedTuple):
    """A formed batch whose result is still to come."""

    chunks: Sequence[Chunk]
    predicted_s: float


class PrefillObserver:
    """Learns from every batch announced with `formed`, and keeps what it learned.

    Args:
        profile: what to begin with.
        overlap: batches are launched while the one before still runs.
        state_dir: folder of what earlier runs learned; None keeps nothing.
    """

    def __init__(
        self, profile: Profile, clock: SharedClock, overlap: bool, state_dir: str | None
    ) -> None:
        import scipy.optimize  # noqa: F401  # half a second, which no batch shall wait for

        self._profile = profile
        self._clock = clock
        self._overlap = overlap
        self._file = None if state_dir is None else state_file(state_dir, profile.name)
        earlier = self._earlier()
        self._learner = PrefillLearner(profile.prefill, earlier)
        self._warm = earlier is not None
        self._ratio = Calibration()
        self._flights: dict[int, _Flight] = {}
        self._last_end_s = 0.0
        self._last_iteration = -1
        self._saved_s = -math.inf
        if self._warm:
            self._publish()

    def model(self) -> tuple[PrefillModel, float]:
        """The model for decisions and the factor on its predictions; the same on every rank."""
        values = self._clock.learned(_SHARED, None)
        if values is None:
            return self._profile.prefill, 1.0
        *coefficients, factor = values
        return PrefillModel(*coefficients), factor

    def formed(self, iteration: int, chunks: Sequence[Chunk], predicted_s: float) -> None:
        """A batch will be launched as upstream's forward `iteration`. Its chunks are taken now:
        the requests move on before the result is there."""
        self._flights[iteration] = _Flight(chunks, predicted_s)

    def finished(self, batch: Any) -> None:
        """The result of an upstream `ScheduleBatch` has been processed.

        Under the overlap schedule a batch waits on the device for the one before, so its time runs
        from that one's end. Otherwise, and after a pause, it runs from its launch.
        """
        end_s = time.monotonic()
        follows = self._last_iteration + 1 == batch.forward_iter and not batch.after_idle_gap
        begin_s = batch.launch_ts
        if self._overlap:
            begin_s = self._last_end_s if follows else max(begin_s, self._last_end_s)
        self._last_end_s, self._last_iteration = end_s, batch.forward_iter
        for stale in [n for n in self._flights if n < batch.forward_iter]:
            del self._flights[stale]
        flight = self._flights.pop(batch.forward_iter, None)
        if flight is None:
            return
        self._ratio.observe(flight.predicted_s, end_s - begin_s)
        refitted = self._learner.observe(flight.chunks, end_s - begin_s)
        self._publish()
        if refitted and end_s - self._saved_s > _SAVE_EVERY_S:
            self._saved_s = end_s
            self.save()

    def save(self) -> None:
        """Write what is learned for the next run, beside the event loop."""
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

    def snapshot(self) -> dict[str, Any]:
        """Figures for /server_info. The ratio is measured / predicted, of the predictions that
        decisions used."""
        return {
            "batches_measured": self._ratio.samples,
            "prediction_ratio": round(self._ratio.factor, 4),
            "prediction_spread": round(self._ratio.spread, 4),
            "calibration": round(self._learner.factor, 4),
            "refits": self._learner.refits,
            "warm_start": self._warm,
        }

    def _publish(self) -> None:
        model = msgspec.structs.astuple(self._learner.model)
        self._clock.learn(_SHARED, (*model, self._learner.factor))

    def _earlier(self) -> PrefillModel | None:
        if self._file is None or not self._file.exists():
            return None
        try:
            return load_profile(self._file).prefill
        except InputError as error:
            _log.warning("Kairos begins without what it had learned: %s", error)
            return None


def state_file(state_dir: str, profile_name: str) -> Path:
    """Where prefill servers keep what they learned about a profile: a profile file again."""
    return Path(state_dir) / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', profile_name)}.prefill.json"


def _write(profile: Profile, file: Path) -> None:
    try:
        save_profile(profile, file)
    except InputError as error:
        _log.warning("Kairos could not keep what it learned: %s", error)
