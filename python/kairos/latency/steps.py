"""Decode step times learned while serving, on top of the analytic prior of a profile."""

import math
from typing import Any, NamedTuple

import numpy as np

from kairos.errors import InputError
from kairos.latency.calibration import Calibration
from kairos.latency.table import Floats, StepTable

CONTEXT_KNOTS = 9
RATE = 0.05
"""Weight of one sample at a knot that has seen many; the first ones count fully."""
PRIOR_SAMPLES = 4.0
"""Samples at a knot that weigh as much as what the other knots say."""
REFRESH = 16
"""Samples between two tables. Between them the calibration follows."""
SHAPE_EVERY = 4
"""Only every so-many-th step is shared out over the knots, which costs more than the rest."""
MEMORY = 1.0 - 1.0 / 4096
"""What is left of a knot's samples after each step that is shared out: a knot that is not visited
any more comes to lean on the others."""
FIRST_SPREADS = 1.0
"""Up to twice what is known counts, before a spread is known."""
WINDOW = 512
"""Steps by which the weight of the longest context is judged."""
_RATIO_RANGE = (0.02, 50.0)
_STRAGGLER_RATE = 0.3
_TELLING_SPREAD = 0.1
_TELLING_SHARE = 0.15  # of a step that context must take


class LearnedSteps(NamedTuple):
    """What decisions need of a `StepLearner`; plain values, so that ranks can share it.

    Attributes:
        version: a new number whenever one of the next two changes.
        ratios: measured / prior at every knot, row by row, as the bytes of float64.
        straggler: weight of B x longest context in K, see `DecodeModel`.
        factor: correction of every step time, newer than the ratios.
    """

    version: int
    ratios: bytes
    straggler: float
    factor: float


class StepGrid:
    """Knots over batch size (1, 2, 4, ..., the largest) and context K (equally spaced), with the
    prior's step times between them.

    Args:
        prior: analytic, `CONTEXT_KNOTS` context knots.

    Attributes:
        batches: sizes of the knots, ascending.
    """

    def __init__(self, prior: StepTable) -> None:
        self.prior = prior
        largest = len(prior.seconds) - 1
        powers = 2.0 ** np.arange(math.ceil(math.log2(largest)) if largest > 1 else 0)
        self.batches = np.append(powers, float(largest))
        # Of each row of the table: the knot at or below it, the next one, the share of the way.
        sizes, knots = np.arange(1, largest + 1), np.log2(self.batches)
        self._below = np.searchsorted(self.batches, sizes, side="right") - 1
        self._above = np.minimum(self._below + 1, len(knots) - 1)
        apart = np.maximum(knots[self._above] - knots[self._below], 1e-300)
        self._way = ((np.log2(sizes) - knots[self._below]) / apart)[:, None]

    def table(self, ratios: Floats, straggler: float) -> StepTable:
        """The prior times the bilinear interpolation of `ratios`, shape (batch knots, context
        knots). A step never gets faster with load."""
        below = ratios[self._below]
        seconds = self.prior.seconds.copy()
        body = seconds[1:] * (below + self._way * (ratios[self._above] - below))
        seconds[1:] = np.maximum.accumulate(np.maximum.accumulate(body, axis=0), axis=1)
        return self.prior._replace(seconds=seconds, straggler=straggler)


class StepLearner:
    """Follows measured steps: a grid of measured / prior for the shape, the weight of the longest
    context, and a calibration for what changes from one moment to the next.

    Args:
        prior: step times of the profile, see `StepTable.from_model`, `CONTEXT_KNOTS` knots.

    Attributes:
        calibration: measured / table.
        table: the current step times, without the calibration.
        samples: steps whose pace was taken in.
    """

    def __init__(self, prior: StepTable) -> None:
        from scipy.optimize import nnls  # here: its import would stall a serving process

        self._nnls = nnls
        self.grid = StepGrid(prior)
        self.calibration = Calibration()
        self.table = prior
        self.samples = 0
        self._shapes = 0  # steps that the table was learned from
        self._batches = self.grid.batches
        self._log_batches = np.log2(self._batches)
        self._ratios = np.ones((len(self._batches), prior.seconds.shape[1]))
        self._counts = np.zeros_like(self._ratios)
        self._straggler = prior.straggler
        self._mean = 1.0
        self._window = np.zeros((WINDOW, 4))
        self._seen = 0  # steps of this run, which is what the window holds
        self._version = 0
        self._learned = LearnedSteps(0, self._ratios.tobytes(), self._straggler, 1.0)

    @property
    def learned(self) -> LearnedSteps:
        """For `StepTables`, on this rank and on others."""
        return self._learned

    def observe(self, batch: int, total: float, longest: float, seconds: float) -> None:
        """Take in one measured step; what is not positive and finite, or outside the table, is
        ignored.

        Args:
            batch: requests. total, longest: sum and maximum of their contexts, tokens.
        """
        self.observe_shape(batch, total, longest, seconds)
        self.observe_pace(batch, total, longest, seconds)

    def observe_shape(self, batch: int, total: float, longest: float, seconds: float) -> None:
        """As `observe`, for the table alone: what the step took on the device."""
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
        """As `observe`, for the calibration alone: how long until the next one."""
        if not self._is_step(batch, seconds):
            return
        self.samples += 1
        self.calibration.observe(self.table.step_s(batch, total, longest), seconds)
        if self.samples % REFRESH == 0:
            self._refresh()
        self._learned = self._learned._replace(factor=self.calibration.factor)

    def _is_step(self, batch: int, seconds: float) -> bool:
        return 1 <= batch < len(self.table.seconds) and 0.0 < seconds < math.inf

    def state(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {
            "ratios": self._ratios.tolist(),
            "counts": self._counts.tolist(),
            "mean": self._mean,
            "straggler": self._straggler,
            "samples": self.samples,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned.

        Raises:
            InputError: of another grid, or not a state.
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
            raise InputError("learned steps: of another engine, or out of range")
        self._ratios, self._counts = ratios, counts
        self._mean, self._straggler = mean, straggler
        self.samples = self._shapes = samples
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
        # Calibrated errors are clipped to four spreads; these too, in the same unit. At first
        # nobody knows the spread; one stall must not make a knot slow for ever.
        spreads = 4.0 * self.calibration.spread + 0.05 if self._shapes > 64 else FIRST_SPREADS
        error = min(max(ratio - known, -spreads * known), spreads * known)
        self._mean += max(RATE, 1.0 / (self._shapes + 1.0)) * (known + error - self._mean)
        rate = np.maximum(RATE, 1.0 / np.maximum(counts, 1.0)) * here
        own += np.where(counts > 0.0, rate * (known + error - own), 0.0)
        np.clip(own, *_RATIO_RANGE, out=own)

    def _learn_straggler(self) -> None:
        """Which of the two contexts the last `WINDOW` steps followed, by non-negative least squares
        of relative errors. Steps of alike requests say nothing about it and leave it as it is."""
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
            except RuntimeError:  # it does not always end
                return
            error = np.abs(weighted @ found - 1.0)
            kept = error <= 4.0 * 1.4826 * np.median(error) + 1e-9
        by_total, by_longest = found[3] / scale[3], found[4] / scale[4]
        by_context = by_total * total.mean() + by_longest * padded.mean()
        if by_context > _TELLING_SHARE * seconds.mean():
            seen = by_longest / (by_total + by_longest)
            self._weigh_longest(self._straggler + _STRAGGLER_RATE * (seen - self._straggler))

    def _weigh_longest(self, straggler: float) -> None:
        """Contexts mean something else from now on: learn the ratios anew, from a first guess."""
        if abs(straggler - self._straggler) < 0.02:
            return
        self._straggler = straggler
        self._counts[:] = 0.0
        prior = self.grid.prior._replace(straggler=straggler)
        steps = self._window[:: WINDOW // 32]
        self._mean = float(np.median([s / prior.step_s(int(b), k, m) for b, k, m, s in steps]))

    def _effective(self, ratios: Floats, counts: Floats) -> Floats:
        """Knots with few samples lean on what the others say."""
        return (counts * ratios + PRIOR_SAMPLES * self._mean) / (counts + PRIOR_SAMPLES)

    def _refresh(self) -> None:
        ratios = self._effective(self._ratios, self._counts)
        self.table = self.grid.table(ratios, self._straggler)
        self._version += 1
        self._learned = LearnedSteps(
            self._version, ratios.tobytes(), self._straggler, self.calibration.factor
        )


class StepTables:
    """The dense table of the newest `LearnedSteps`, made once per version."""

    def __init__(self, prior: StepTable) -> None:
        self._grid = StepGrid(prior)
        self._shape = (len(self._grid.batches), prior.seconds.shape[1])
        self._version = 0
        self._table = prior

    def of(self, learned: LearnedSteps) -> StepTable:
        """Step times with the newest correction left out: multiply by `learned.factor`."""
        if learned.version != self._version:
            ratios = np.frombuffer(learned.ratios, np.float64).reshape(self._shape)
            self._table = self._grid.table(ratios, learned.straggler)
            self._version = learned.version
        return self._table


def _between(knots: Floats, x: float) -> tuple[int, float]:
    """Index of the knot left of `x` and the share of the way to the next."""
    at = int(np.searchsorted(knots, x, side="right")) - 1
    at = min(max(at, 0), max(len(knots) - 2, 0))
    if len(knots) == 1 or knots[at + 1] <= knots[at]:
        return at, 0.0
    return at, float((x - knots[at]) / (knots[at + 1] - knots[at]))
