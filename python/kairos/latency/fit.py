"""Fits the coefficients of the latency models by non-negative least squares."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kairos.errors import InputError
from kairos.latency.decode import DecodeModel
from kairos.latency.kv import KvLink
from kairos.latency.prefill import Chunk, PrefillModel

Floats = npt.NDArray[np.float64]
_OUTLIER_SIGMAS = 4.0
# Weight of the prior in `refine_prefill`: a coefficient 20 % off costs as much as one sample that
# is 10 % off.
_PRIOR_WEIGHT = 0.5
_SMALL_SHARE = 0.05  # of a batch; a prior is not trusted below it


class PrefillSample(NamedTuple):
    """A measured prefill batch.

    Attributes:
        chunks: of the batch.
        seconds: its duration.
    """

    chunks: Sequence[Chunk]
    seconds: float


class StepSample(NamedTuple):
    """A measured decode step.

    Attributes:
        batch: requests.
        total_context: sum of their contexts, tokens.
        seconds: duration of the step.
    """

    batch: int
    total_context: int
    seconds: float


class TransferSample(NamedTuple):
    """A measured KV transfer over an idle link.

    Attributes:
        tokens: whose KV was moved.
        seconds: duration of the transfer.
    """

    tokens: int
    seconds: float


class Fit(NamedTuple):
    """The quality of a fit.

    Attributes:
        relative_rms: root of the mean squared relative error.
        outliers: samples that were left out, beyond four robust standard deviations.
    """

    relative_rms: float
    outliers: int


def fit_prefill(
    samples: Sequence[PrefillSample], weight_floor_s: float
) -> tuple[PrefillModel, Fit]:
    """Fit the fixed, linear and attention cost of a prefill batch.

    Args:
        samples: measured batches.
        weight_floor_s: time to stream the weights once, seconds: the measured time of a batch of
            one token, less the fixed cost. It is given because a maximum cannot be fitted linearly.

    Raises:
        InputError: fewer than four samples, or values that are not positive and finite.
    """
    new, area, seconds = _prefill_features(samples)
    # Several rounds: the linear coefficient decides which samples are on the floor.
    per_token = 0.0
    coefficients, fit = np.zeros(3), Fit(0.0, 0)
    for _ in range(3):
        floored = per_token * new < weight_floor_s if per_token else np.zeros(len(new), bool)
        columns = np.column_stack([np.ones_like(new), np.where(floored, 0.0, new), area])
        target = seconds - np.where(floored, weight_floor_s, 0.0)
        coefficients, fit = robust_nnls(columns, target, seconds)
        per_token = float(coefficients[1])
    fixed, linear, attention = map(float, coefficients)
    return PrefillModel(fixed, weight_floor_s, max(linear, 1e-12), attention), fit


def refine_prefill(prior: PrefillModel, samples: Sequence[PrefillSample]) -> PrefillModel:
    """Correct a prefill model by measurements.

    Coefficients that the samples do not determine follow their overall level: a server that has
    seen short prompts only keeps the prior's ratio of attention to linear cost.

    Args:
        prior: the model to correct.
        samples: measured batches.

    Raises:
        InputError: no sample, or values that are not positive and finite.
    """
    new, area, seconds = _prefill_features(samples)
    if not (len(seconds) and np.isfinite(seconds).all() and (seconds > 0.0).all()):
        raise InputError("fit: every sample must be finite and take more than 0 seconds")
    level = float(np.median(seconds / [prior.batch_s(sample.chunks) for sample in samples]))
    known = level * np.array([prior.fixed_s, prior.per_token_s, prior.per_token_context_s])
    # A coefficient that is 0 in the prior may still turn out to be positive.
    most = np.median(seconds) / np.array([1.0, new.max(), max(area.max(), 1.0)])
    pulls = np.diag(_PRIOR_WEIGHT / np.maximum(known, _SMALL_SHARE * most))
    best, best_rms = prior, np.inf
    # The floor is memory bandwidth, the rest mostly compute: the floor may or may not follow.
    for floor in (prior.weight_floor_s, level * prior.weight_floor_s):
        floored = known[1] * new < floor
        columns = np.column_stack([np.ones_like(new), np.where(floored, 0.0, new), area])
        target = seconds - np.where(floored, floor, 0.0)
        coefficients, fit = robust_nnls(columns, target, seconds, (pulls, pulls @ known))
        if fit.relative_rms < best_rms:
            fixed, per_token, attention = map(float, coefficients)
            best_rms = fit.relative_rms
            best = PrefillModel(fixed, floor, max(per_token, 1e-12), attention)
    return best


def fit_decode(samples: Sequence[StepSample], expert_fraction: float) -> tuple[DecodeModel, Fit]:
    """Fit the fixed, expert, context and per-request cost of a decode step.

    Args:
        samples: measured steps.
        expert_fraction: share of the experts that one token activates; 1 for a dense model.
    """
    batch = np.array([s.batch for s in samples], np.float64)
    context = np.array([s.total_context for s in samples], np.float64)
    seconds = np.array([s.seconds for s in samples], np.float64)
    share = 1.0 - (1.0 - expert_fraction) ** batch
    experts = share if 0.0 < expert_fraction < 1.0 else np.zeros_like(share)
    columns = np.column_stack([np.ones_like(batch), experts, context, batch])
    coefficients, fit = robust_nnls(columns, seconds, seconds)
    fixed, experts_s, per_context, per_request = map(float, coefficients)
    return DecodeModel(fixed, experts_s, expert_fraction, per_context, per_request), fit


def fit_kv(samples: Sequence[TransferSample], bytes_per_token: float) -> tuple[KvLink, Fit]:
    """Fit the fixed cost and the bandwidth of KV transfers.

    Args:
        samples: measured transfers.
        bytes_per_token: KV bytes of one token.
    """
    tokens = np.array([s.tokens for s in samples], np.float64)
    seconds = np.array([s.seconds for s in samples], np.float64)
    columns = np.column_stack([np.ones_like(tokens), tokens * bytes_per_token])
    (fixed, per_byte), fit = robust_nnls(columns, seconds, seconds)
    return KvLink(float(fixed), bytes_per_token, 1.0 / max(float(per_byte), 1e-15)), fit


def _prefill_features(samples: Sequence[PrefillSample]) -> tuple[Floats, Floats, Floats]:
    """Return new tokens, area and seconds of each sample."""
    new = np.array([sum(c.new for c in s.chunks) for s in samples], np.float64)
    area = np.array(
        [sum(c.new * (c.context + c.new / 2) for c in s.chunks) for s in samples], np.float64
    )
    return new, area, np.array([s.seconds for s in samples], np.float64)


def robust_nnls(
    columns: Floats,
    target: Floats,
    seconds: Floats,
    prior: tuple[Floats, Floats] | None = None,
) -> tuple[Floats, Fit]:
    """Least squares of relative errors with coefficients >= 0; outliers are left out once.

    `prior` holds further rows and their targets, relative already and never left out.
    """
    from scipy.optimize import nnls

    rows, aims = prior or (np.empty((0, columns.shape[1])), np.empty(0))
    if len(target) + len(aims) < columns.shape[1]:
        raise InputError(f"fit: {len(target)} samples; at least {columns.shape[1]} are needed")
    if not (np.isfinite(columns).all() and np.isfinite(seconds).all() and (seconds > 0.0).all()):
        raise InputError("fit: every sample must be finite and take more than 0 seconds")
    scale = np.maximum(np.abs(columns).max(axis=0), 1e-300)
    weighted = columns / scale / seconds[:, None]
    kept = np.ones(len(target), bool)
    for _ in range(2):
        try:
            coefficients, _ = nnls(
                np.vstack([weighted[kept], rows / scale]),
                np.concatenate([(target / seconds)[kept], aims]),
            )
        except RuntimeError as error:
            raise InputError(f"fit: {error}") from error
        off = weighted @ coefficients - target / seconds
        spread = 1.4826 * float(np.median(np.abs(off[kept]))) + 1e-9
        kept = np.abs(off) <= _OUTLIER_SIGMAS * spread
        if kept.sum() < columns.shape[1]:
            kept[:] = True
            break
    rms = float(np.sqrt(np.mean(off[kept] ** 2)))
    return coefficients / scale, Fit(rms, int((~kept).sum()))
