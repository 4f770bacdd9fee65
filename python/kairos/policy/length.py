"""An online estimate of the output tokens that a request is still to make."""

from typing import Any

import numpy as np
import numpy.typing as npt

from kairos.errors import InputError

BINS_PER_OCTAVE = 4
BINS = 18 * BINS_PER_OCTAVE
"""Bins of output length, equally wide in log2(tokens + 1), up to 262,143 tokens."""

_EDGES = 2.0 ** (np.arange(BINS + 1) / BINS_PER_OCTAVE) - 1.0
_PROMPT_EDGES = (1_000, 4_000, 16_000)
PROMPT_BUCKETS = len(_PROMPT_EDGES) + 1
_MIN_SAMPLES = 100
_REFRESH = 25

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def bin_of(tokens: int) -> int:
    """Return the bin of an output length."""
    return min(int(BINS_PER_OCTAVE * np.log2(tokens + 1.0)), BINS - 1)


def group_of(slo_class: int, prompt_tokens: int) -> int:
    """Return the group of a request: output lengths vary by SLO class and prompt length."""
    bucket = sum(prompt_tokens >= edge for edge in _PROMPT_EDGES)
    return slo_class * PROMPT_BUCKETS + bucket


class LengthEstimator:
    """Predicts remaining output from the lengths of completed requests, by group.

    A prediction is the distribution of the length given that it exceeds the tokens made so far. A
    group with fewer than 100 completions uses those of all groups; while these are fewer too,
    nothing is predicted.

    Args:
        classes: number of SLO classes.
        quantile: share of requests that end before the horizon, 0 to 1. Low values plan for short
            outputs: lost time is then caught up early, which costs throughput.
        memory: completions after which a sample counts 1/e.

    """

    def __init__(self, classes: int = 1, quantile: float = 0.05, memory: float = 2_000.0) -> None:
        if classes < 1 or not 0.0 < quantile < 1.0 or not memory >= 2 * _MIN_SAMPLES:
            raise InputError(
                f"length estimator: classes {classes}, quantile {quantile!r} and memory {memory!r} "
                f"must be at least 1, in (0, 1) and at least {2 * _MIN_SAMPLES}"
            )
        groups = classes * PROMPT_BUCKETS
        self._quantile = quantile
        self._keep = 1.0 - 1.0 / memory
        self._counts = np.zeros((groups, BINS))
        self._all = np.zeros(BINS)
        self._seen = 0
        self._stale = False
        self._horizons: Floats = np.zeros((groups, BINS))
        self._means: Floats = np.zeros((groups, BINS))

    @property
    def horizons(self) -> Floats:
        """Quantile of the remaining tokens; 0 where nothing is known.

        Shape (groups, bins of tokens made so far).
        """
        if self._stale:
            self._refresh()
        return self._horizons

    @property
    def means(self) -> Floats:
        """Mean of the remaining tokens, in the same shape."""
        if self._stale:
            self._refresh()
        return self._means

    def state(self) -> dict[str, Any]:
        """Return the learned state as plain values for a file."""
        return {"counts": self._counts.tolist(), "all": self._all.tolist(), "seen": self._seen}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state` returned.

        Raises:
            InputError: not a state, or one of other SLO classes.
        """
        try:
            counts, pooled = (np.array(state[name], np.float64) for name in ("counts", "all"))
            seen = int(state["seen"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"learned lengths: {error!r}") from error
        if counts.shape != self._counts.shape or pooled.shape != self._all.shape or seen < 0:
            raise InputError("learned lengths: the state is of other SLO classes; delete its file")
        if not all(np.isfinite(c).all() and (c >= 0.0).all() for c in (counts, pooled)):
            raise InputError("learned lengths: counts are out of range")
        self._counts, self._all, self._seen = counts, pooled, seen
        self._stale = True

    def observe(self, group: int, output_tokens: int) -> None:
        """Count a request that ended.

        Args:
            group: of the request.
            output_tokens: tokens after the first one.

        Raises:
            InputError: no such group, or a negative number of tokens.
        """
        if not 0 <= group < len(self._counts) or not output_tokens >= 0:
            raise InputError(
                f"length estimator: group {group} and output_tokens {output_tokens!r}; "
                f"allowed are 0 to {len(self._counts) - 1} and 0 or more"
            )
        at = bin_of(output_tokens)
        for counts in (self._counts[group], self._all):
            counts *= self._keep
            counts[at] += 1.0
        self._seen += 1
        if self._seen % _REFRESH == 0:
            self._stale = True  # not every reader wants the tables

    def remaining(self, groups: Indices, tokens: Indices, limits: Floats) -> Floats:
        """Return the expected remaining tokens of many requests; 0 where nothing is known.

        Args:
            groups: group of each request.
            tokens: tokens that each has made.
            limits: tokens that each may make.
        """
        at = np.minimum((BINS_PER_OCTAVE * np.log2(tokens + 1.0)).astype(np.int64), BINS - 1)
        expected: Floats = np.minimum(self.means[groups, at], np.maximum(limits - tokens, 0.0))
        return expected

    def _refresh(self) -> None:
        self._stale = False
        pooled, pooled_mean = self._horizon(self._all), self._mean(self._all)
        for row, counts in enumerate(self._counts):
            known = counts.sum() >= _MIN_SAMPLES
            self._horizons[row] = self._horizon(counts) if known else pooled
            self._means[row] = self._mean(counts) if known else pooled_mean

    def expected_remaining(self, group: int, tokens: int, max_new_tokens: int) -> float | None:
        """Return the mean of the remaining tokens; None while nothing is known.

        Args:
            group: of the request.
            tokens: that it has made.
            max_new_tokens: that it may make.
        """
        counts = self._counts[group]
        if counts.sum() < _MIN_SAMPLES:
            counts = self._all
        if counts.sum() < _MIN_SAMPLES:
            return None
        middle = (_EDGES[:-1] + _EDGES[1:]) / 2
        longer = np.where(middle > tokens, counts, 0.0)
        if longer.sum() < 1.0:
            return float(min(max(tokens, 1), max(max_new_tokens - tokens, 0)))
        remaining = np.minimum(middle, max_new_tokens) - tokens
        return float(max(0.0, (longer * remaining).sum() / longer.sum()))

    def _mean(self, counts: Floats) -> Floats:
        """Return the mean of the remaining length for each bin of tokens made so far."""
        if counts.sum() < _MIN_SAMPLES:
            return np.zeros(BINS)
        middle = (_EDGES[:-1] + _EDGES[1:]) / 2
        longer = np.cumsum(counts[::-1])[::-1]
        total = np.cumsum((counts * middle)[::-1])[::-1]
        made = _EDGES[:-1]
        # Beyond the longest output seen, as many tokens again are expected.
        mean = np.where(longer >= 1.0, total / np.maximum(longer, 1e-300) - made, made)
        return np.maximum(mean, 1.0)

    def _horizon(self, counts: Floats) -> Floats:
        """Return the quantile of the remaining length for each bin of tokens made so far."""
        if counts.sum() < _MIN_SAMPLES:
            return np.zeros(BINS)
        ended = np.concatenate([[0.0], np.cumsum(counts)])
        longer = ended[-1] - ended[:-1]
        target = ended[:-1] + self._quantile * longer
        ends = np.interp(target, ended, _EDGES)
        # Beyond the longest output seen, as many tokens again are expected.
        return np.where(longer >= 1.0, np.maximum(ends - _EDGES[:-1], 1.0), _EDGES[:-1])
