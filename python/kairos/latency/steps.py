"""Decode step times that are learned while serving, from the analytic prior of a profile."""

import math
from typing import Any, NamedTuple

import numpy as np

from kairos.errors import InputError
from kairos.latency.calibration import Calibration
from kairos.latency.table import Floats, StepTable

CONTEXT_KNOTS = 9
RATE = 0.05
"""Weight of one sample at a knot with many samples; the first ones count fully."""
PRIOR_SAMPLES = 4.0
"""Samples at a knot that weigh as much as the mean of all knots."""
REFRESH = 16
"""Samples between two tables; the calibration follows every sample."""
SHAPE_EVERY = 4
"""One step of this many updates the knots, which costs more than the rest."""
MEMORY = 1.0 - 1.0 / 4096
"""Decay of a knot's samples at each such step: a knot without new samples approaches the mean."""
FIRST_SPREADS = 1.0
"""Before a spread is known, a sample counts up to twice the known ratio."""
WINDOW = 512
"""Steps from which the weight of the longest context is learned."""
TRIAL_STEPS = 8
"""Steps after which an earlier run's values that are wrong by more than `MAX_WRONG` are dropped."""
MAX_WRONG = 3.0
"""As for prefill. The first steps of a server may be slow, so the median counts."""
_RATIO_RANGE = (0.02, 50.0)
_STRAGGLER_RATE = 0.3
_TELLING_SPREAD = 0.1
_TELLING_SHARE = 0.15  # least share of a step that context takes


class LearnedSteps(NamedTuple):
    """The state of a `StepLearner` that decisions need; plain values, so that ranks can share it.

    Attributes:
        version: a new number whenever one of the next two changes.
        ratios: measured / prior at every knot, row by row, as the bytes of float64.
        straggler: weight of B x longest context in K, see `DecodeModel`.
        factor: calibration of every step time, newer than the ratios.
    """

    version: int
    ratios: bytes
    straggler: float
    factor: float


class StepGrid:
    """Knots over batch size and context, with the prior's step times between them.

    Batch sizes are 1, 2, 4, ... and the largest; contexts K are equally spaced.

    Args:
        prior: analytic, with `CONTEXT_KNOTS` context knots.

    Attributes:
        prior: as given.
        batches: sizes of the knots, ascending.
    """

    def __init__(self, prior: StepTable) -> None:
        self.prior = prior
        largest = len(prior.seconds) - 1
        powers = 2.0 ** np.arange(math.ceil(math.log2(largest)) if largest > 1 else 0)
        self.batches = np.append(powers, float(largest))
        # For each row of the table: the knot at or below it, the next one, the share of the way.
        sizes, knots = np.arange(1, largest + 1), np.log2(self.batches)
        self._below = np.searchsorted(self.batches, sizes, side="right") - 1
        self._above = np.minimum(self._below + 1, len(knots) - 1)
        apart = np.maximum(knots[self._above] - knots[self._below], 1e-300)
        self._way = ((np.log2(sizes) - knots[self._below]) / apart)[:, None]

    def table(self, ratios: Floats, straggler: float) -> StepTable:
        """Return the prior times the bilinear interpolation of `ratios`.

        A step never gets faster with load.

        Args:
            ratios: measured / prior, shape (batch knots, context knots).
            straggler: weight of the longest context.
        """
        below = ratios[self._below]
        seconds = self.prior.seconds.copy()
        body = seconds[1:] * (below + self._way * (ratios[self._above] - below))
        seconds[1:] = np.maximum.accumulate(np.maximum.accumulate(body, axis=0), axis=1)
        return self.prior._replace(seconds=seconds, straggler=straggler)


class StepLearner:
    """Learns step times from measured steps.

    It learns a grid of measured / prior for the shape, the weight of the longest context, and a
    calibration for changes from one moment to the next.

    Args:
        prior: step times of the profile with `CONTEXT_KNOTS` knots, see `StepTable.from_model`.

    Attributes:
        grid: knots and prior.
        calibration: measured / table.
        table: the current step times, without the calibration.
        samples: steps whose pace was taken in.
        is_warm: an earlier run's values were given and fit the measurements so far.
    """

    def __init__(self, prior: StepTable) -> None:
        from scipy.optimize import nnls  # imported early: the import stalls a serving process

        self._nnls = nnls
        self.grid = StepGrid(prior)
        self.calibration = Calibration()
        self.table = prior
        self.samples = 0
        self._shapes = 0  # steps from which the table was learned
        self._batches = self.grid.batches
        self._log_batches = np.log2(self._batches)
        self._ratios = np.ones((len(self._batches), prior.seconds.shape[1]))
        self._counts = np.zeros_like(self._ratios)
        self._straggler = prior.straggler
        self._mean = 1.0
        self._window = np.zeros((WINDOW, 4))
        self._seen = 0  # steps of this run; the window holds the newest of them
        self.is_warm = False
        self._trial: list[tuple[int, float, float, float]] | None = None  # its steps
        self._version = 0
        self._learned = LearnedSteps(0, self._ratios.tobytes(), self._straggler, 1.0)

    @property
    def learned(self) -> LearnedSteps:
        """The state for `StepTables`, on this rank and on others."""
        return self._learned

    def observe(self, batch: int, total: float, longest: float, seconds: float) -> None:
        """Take in one measured step; a step outside the table is ignored.

        Args:
            batch: requests.
            total: sum of their contexts, tokens.
            longest: longest of their contexts, tokens.
            seconds: duration; ignored if it is not positive and finite.
        """
        self.observe_shape(batch, total, longest, seconds)
        self.observe_pace(batch, total, longest, seconds)

    def observe_shape(self, batch: int, total: float, longest: float, seconds: float) -> None:
        """Take in the duration of a step on the device, for the table alone; see `observe`."""
        if not self._is_step(batch, seconds):
            return
        self._shapes += 1
        if self._shapes < 8 * REFRESH or self._shapes % SHAPE_EVERY == 0:
            self._learn_shape(batch, total, longest, seconds)
        self._window[self._seen % WINDOW] = batch, total, longest, seconds
        self._seen += 1
        if self._seen % WINDOW == 0:
            self._learn_straggler()

    def observe_pace(self, batch: int, total: float, longest: float, seconds: float) -> None:
        """Take in the time until the next step, for the calibration alone; see `observe`."""
        if not self._is_step(batch, seconds):
            return
        self.samples += 1
        self.calibration.observe(self.table.step_s(batch, total, longest), seconds)
        if self._trial is not None:
            self._trial.append((batch, total, longest, seconds))
            if len(self._trial) == TRIAL_STEPS:
                self._end_trial(self._trial)
        if self.samples % REFRESH == 0:
            self._refresh()
        self._learned = self._learned._replace(factor=self.calibration.factor)

    def _is_step(self, batch: int, seconds: float) -> bool:
        return 1 <= batch < len(self.table.seconds) and 0.0 < seconds < math.inf

    def state(self) -> dict[str, Any]:
        """Return the learned state as plain values for a file."""
        return {
            "ratios": self._ratios.tolist(),
            "counts": self._counts.tolist(),
            "mean": self._mean,
            "straggler": self._straggler,
            "samples": self.samples,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state` returned.

        Raises:
            InputError: not a state, or one of another grid.
        """
        try:
            ratios, counts = (np.array(state[name], np.float64) for name in ("ratios", "counts"))
            mean, straggler = float(state["mean"]), float(state["straggler"])
            samples = int(state["samples"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"learned steps: {error!r}") from error
        low, high = _RATIO_RANGE
        sane = (
            ratios.shape == counts.shape == self._ratios.shape
            and ((ratios >= low) & (ratios <= high)).all()
            and (counts >= 0.0).all()
            and low <= mean <= high
            and 0.0 <= straggler <= 1.0
            and samples >= 0
        )
        if not sane:
            raise InputError(
                "learned steps: the state is of another engine or out of range; delete its file"
            )
        self._ratios, self._counts = ratios, counts
        self._mean, self._straggler = mean, straggler
        self.samples = self._shapes = samples
        self.is_warm, self._trial = True, []
        self._refresh()

    def _end_trial(self, steps: list[tuple[int, float, float, float]]) -> None:
        """Keep an earlier run's values, or begin anew from the prior at the measured level."""
        self._trial = None
        wrong = float(np.median([s / self.table.step_s(b, k, m) for b, k, m, s in steps]))
        if 1.0 / MAX_WRONG < wrong < MAX_WRONG:
            return
        prior = self.grid.prior
        level = float(np.median([s / prior.step_s(b, k, m) for b, k, m, s in steps]))
        self.is_warm = False
        self.calibration = Calibration()
        self.samples = self._shapes = len(steps)
        self._straggler = prior.straggler
        self._counts[:] = 0.0
        self._mean = min(max(level, _RATIO_RANGE[0]), _RATIO_RANGE[1])
        self._ratios[:] = self._mean
        self._refresh()

    def _learn_shape(self, batch: int, total: float, longest: float, seconds: float) -> None:
        context = total + self._straggler * (batch * longest - total)
        prior = self.grid.prior._replace(straggler=0.0)
        expected = prior.step_s(batch, context)
        ratio = min(max(seconds / expected, _RATIO_RANGE[0]), _RATIO_RANGE[1])
        b, b_share = _between(self._log_batches, math.log2(batch))
        k = min(max(context / prior.knot_tokens, 0.0), self._ratios.shape[1] - 1.0)
        left = min(int(k), self._ratios.shape[1] - 2)
        k_share = k - left
        weights = np.outer((1.0 - b_share, b_share), (1.0 - k_share, k_share))
        # With one batch size there is one row of knots.
        at = np.s_[b : b + 2, left : left + 2]
        own, counts = self._ratios[at], self._counts[at]
        here = weights[: len(own)]
        known = float((self._effective(own, counts) * here).sum())
        self._counts *= MEMORY
        counts += here
        # As in the calibration, errors are clipped to four spreads. At first the spread is
        # unknown, and one stall must not make a knot slow for ever.
        spreads = 4.0 * self.calibration.spread + 0.05 if self._shapes > 64 else FIRST_SPREADS
        error = min(max(ratio - known, -spreads * known), spreads * known)
        self._mean += max(RATE, 1.0 / (self._shapes + 1.0)) * (known + error - self._mean)
        rate = np.maximum(RATE, 1.0 / np.maximum(counts, 1.0)) * here
        own += np.where(counts > 0.0, rate * (known + error - own), 0.0)
        np.clip(own, *_RATIO_RANGE, out=own)

    def _learn_straggler(self) -> None:
        """Learn whether the last `WINDOW` steps followed the total or the longest context.

        Non-negative least squares of relative errors. Steps of requests with similar contexts do
        not determine it and leave it unchanged.
        """
        batch, total, longest, seconds = self._window.T
        padded = batch * longest
        if np.mean((padded - total) / padded) < _TELLING_SPREAD:
            return
        columns = np.column_stack([np.ones(WINDOW), np.log2(batch), batch, total, padded])
        scale = columns.max(axis=0) + 1e-300
        kept = np.ones(WINDOW, bool)
        for _ in range(2):
            weighted = columns / scale / seconds[:, None]
            try:
                found, _ = self._nnls(weighted[kept], np.ones(int(kept.sum())))
            except RuntimeError:  # it does not always converge
                return
            error = np.abs(weighted @ found - 1.0)
            kept = error <= 4.0 * 1.4826 * np.median(error) + 1e-9
        by_total, by_longest = found[3] / scale[3], found[4] / scale[4]
        by_context = by_total * total.mean() + by_longest * padded.mean()
        if by_context > _TELLING_SHARE * seconds.mean():
            seen = by_longest / (by_total + by_longest)
            self._weigh_longest(self._straggler + _STRAGGLER_RATE * (seen - self._straggler))

    def _weigh_longest(self, straggler: float) -> None:
        """Change the weight of the longest context and learn the ratios anew."""
        if abs(straggler - self._straggler) < 0.02:
            return
        self._straggler = straggler
        self._counts[:] = 0.0
        prior = self.grid.prior._replace(straggler=straggler)
        steps = self._window[:: WINDOW // 32]
        self._mean = float(np.median([s / prior.step_s(int(b), k, m) for b, k, m, s in steps]))

    def _effective(self, ratios: Floats, counts: Floats) -> Floats:
        """Return the ratios, pulled towards the mean at knots with few samples."""
        return (counts * ratios + PRIOR_SAMPLES * self._mean) / (counts + PRIOR_SAMPLES)

    def _refresh(self) -> None:
        ratios = self._effective(self._ratios, self._counts)
        self.table = self.grid.table(ratios, self._straggler)
        self._version += 1
        self._learned = LearnedSteps(
            self._version, ratios.tobytes(), self._straggler, self.calibration.factor
        )


class StepTables:
    """Makes the dense table of the newest `LearnedSteps`, once per version."""

    def __init__(self, prior: StepTable) -> None:
        self._grid = StepGrid(prior)
        self._shape = (len(self._grid.batches), prior.seconds.shape[1])
        self._version = 0
        self._table = prior

    def of(self, learned: LearnedSteps) -> StepTable:
        """Return the step times without the calibration `learned.factor`."""
        if learned.version != self._version:
            ratios = np.frombuffer(learned.ratios, np.float64).reshape(self._shape)
            self._table = self._grid.table(ratios, learned.straggler)
            self._version = learned.version
        return self._table


def _between(knots: Floats, x: float) -> tuple[int, float]:
    """Return the index of the knot left of `x`, and the share of the way to the next."""
    at = int(np.searchsorted(knots, x, side="right")) - 1
    at = min(max(at, 0), max(len(knots) - 2, 0))
    if len(knots) == 1 or knots[at + 1] <= knots[at]:
        return at, 0.0
    return at, float((x - knots[at]) / (knots[at + 1] - knots[at]))
