"""A prefill model from times to first token that a client measures on an idle server."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kairos.errors import InputError
from kairos.latency.fit import Fit, Floats, robust_nnls
from kairos.latency.prefill import Chunk, PrefillModel


class FirstToken(NamedTuple):
    """A measured time to first token.

    Attributes:
        batches: chunks in which the prompt was computed, one after the other.
        seconds: from sending the request to its first token, on an idle server.
    """

    batches: Sequence[Chunk]
    seconds: float

    @property
    def length(self) -> int:
        """Tokens of the prompt, the cached ones included."""
        last = self.batches[-1]
        return last.context + last.new


class FirstTokenPath(NamedTuple):
    """Time to first token beside prefill: HTTP, handshake, transfer, response.

    Attributes:
        fixed_s: of every request, seconds.
        per_token_s: per token of the whole prompt, seconds: reading its ids, moving its KV.
    """

    fixed_s: float
    per_token_s: float

    def seconds(self, length: int) -> float:
        """Return the time of a prompt of `length` tokens, seconds."""
        return self.fixed_s + self.per_token_s * length


def single_request_chunks(length: int, cached: int, chunk_tokens: int) -> tuple[Chunk, ...]:
    """Return the chunks in which an idle server computes a prompt.

    Args:
        length: tokens of the prompt.
        cached: tokens of it that are cached.
        chunk_tokens: new tokens of a full batch.
    """
    starts = range(cached, length, chunk_tokens)
    return tuple(Chunk(at, min(chunk_tokens, length - at)) for at in starts)


def prefill_s(model: PrefillModel, batches: Sequence[Chunk]) -> float:
    """Return the predicted seconds of `batches`, each a forward of its own."""
    return sum(model.batch_s((chunk,)) for chunk in batches)


def fit_first_tokens(
    samples: Sequence[FirstToken],
) -> tuple[PrefillModel, FirstTokenPath, Fit]:
    """Fit a prefill model and the rest of the path to times to first token.

    Prompts of several chunks pay the fixed cost of a batch several times and the path once. Prompts
    with a cached prefix are long for the path and short for prefill. Without the former the path's
    fixed part counts as the batch's, without the latter its part per token counts as prefill's.
    At the weight floor times stop falling with fewer new tokens; each size among the samples is
    tried as that point.

    Returns:
        the model, the path, and the quality of the fit.

    Raises:
        InputError: too few samples, or values that are not positive and finite.
    """
    if not samples:
        raise InputError("fit: 0 samples of a first token")
    seconds = np.array([s.seconds for s in samples], np.float64)
    several = any(len(s.batches) > 1 for s in samples)
    cached = any(s.batches[0].context for s in samples)
    sizes = sorted({chunk.new for s in samples for chunk in s.batches})
    best, best_error = None, np.inf
    # With fewer than two sizes above the floor the cost per token is undetermined.
    for floored_to in (0, *sizes[:-2]):
        columns = _columns(samples, floored_to)
        used = np.array([several, cached, True, floored_to > 0, True, True])
        found, fit = robust_nnls(columns[:, used], seconds, seconds)
        coefficients = np.zeros(len(used))
        coefficients[used] = found
        path_s, path_token, fixed, floor, per_token, attention = map(float, coefficients)
        model = PrefillModel(fixed, floor, max(per_token, 1e-12), attention)
        path = FirstTokenPath(path_s, path_token)
        # The error of the model itself, which takes the larger of floor and linear part.
        error = _mean_error(model, path, samples)
        if error < best_error:
            best, best_error = (model, path, fit), error
    assert best is not None
    return best


def _columns(samples: Sequence[FirstToken], floored_to: int) -> Floats:
    """Return a row per sample: 1, length, batches, batches on the floor, new tokens above, area."""
    rows = []
    for sample in samples:
        above = [chunk.new for chunk in sample.batches if chunk.new > floored_to]
        area = sum(chunk.new * (chunk.context + chunk.new / 2) for chunk in sample.batches)
        batches = len(sample.batches)
        rows.append((1, sample.length, batches, batches - len(above), sum(above), area))
    return np.array(rows, np.float64)


def _mean_error(model: PrefillModel, path: FirstTokenPath, samples: Sequence[FirstToken]) -> float:
    errors = [
        abs(path.seconds(s.length) + prefill_s(model, s.batches) - s.seconds) / s.seconds
        for s in samples
    ]
    return float(np.mean(errors))
