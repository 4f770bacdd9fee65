"""A prefill model that follows the batches measured while serving."""

from collections import deque
from collections.abc import Sequence
from statistics import median

from kairos.errors import InputError
from kairos.latency.calibration import Calibration
from kairos.latency.fit import PrefillSample, refine_prefill
from kairos.latency.prefill import Chunk, PrefillModel

REFIT_EVERY = 128  # batches
_KEPT = 512  # batches that a refit uses: minutes of a busy server
_REPLAYED = 64  # recent batches that calibrate a refitted model
# After this many batches, an earlier run's model that is wrong by more than a factor of
# `MAX_WRONG` is dropped. The first batches of a server may be slow, so the median counts.
TRIAL_BATCHES = 8
MAX_WRONG = 3.0


class PrefillLearner:
    """Refits the coefficients periodically; their overall level follows every batch.

    Args:
        prior: model towards which refits are pulled, such as a profile's.
        learned: model of an earlier run to begin with.

    Attributes:
        model: the coefficients in use.
        refits: how often they were replaced.
        is_warm: an earlier run's model was given and fits the measurements so far.
    """

    def __init__(self, prior: PrefillModel, learned: PrefillModel | None = None) -> None:
        self.model = learned or prior
        self.refits = 0
        self.is_warm = learned is not None
        self._on_trial = self.is_warm
        self._prior = prior
        self._level = Calibration()
        self._samples: deque[PrefillSample] = deque(maxlen=_KEPT)
        self._since_refit = 0

    @property
    def factor(self) -> float:
        """Correction of every prediction of `model`."""
        return self._level.factor

    def observe(self, chunks: Sequence[Chunk], seconds: float) -> bool:
        """Take in a measured batch.

        Args:
            chunks: of the batch.
            seconds: its duration; values that are not positive are ignored.

        Returns:
            whether the model has been refitted.
        """
        if not 0.0 < seconds < 3600.0 or not chunks:
            return False
        self._samples.append(PrefillSample(chunks, seconds))
        self._level.observe(self.model.batch_s(chunks), seconds)
        if self._on_trial and len(self._samples) == TRIAL_BATCHES:
            self._end_trial()
        self._since_refit += 1
        if self._since_refit < REFIT_EVERY:
            return False
        self._since_refit = 0
        try:
            self.model = refine_prefill(self._prior, self._samples)
        except InputError:  # no solution; the next samples may have one
            return False
        self.refits += 1
        self._level = Calibration()
        for sample in list(self._samples)[-_REPLAYED:]:
            self._level.observe(self.model.batch_s(sample.chunks), sample.seconds)
        return True

    def _end_trial(self) -> None:
        """Keep the model of an earlier run, or go back to the prior at the measured level."""
        self._on_trial = False
        if 1.0 / MAX_WRONG < self._median_ratio() < MAX_WRONG:
            return
        self.is_warm = False
        self.model = self._prior
        self._level = Calibration()
        self._level.factor = self._median_ratio()

    def _median_ratio(self) -> float:
        """Return the median of measured over predicted time, of the batches so far."""
        return median(one.seconds / self.model.batch_s(one.chunks) for one in self._samples)
