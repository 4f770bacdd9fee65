"""Decode step times as a table over batch size and context, for fast look-ups."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kairos.errors import InputError
from kairos.latency.decode import DecodeModel

Floats = npt.NDArray[np.float64]

NO_FLOOR: Floats = np.zeros(1)
"""The floor of a table whose steps wait for no other rank."""


class StepTable(NamedTuple):
    """Step times t(B, K) for every batch size B, linear in K between equally spaced knots.

    Attributes:
        seconds: shape (max_batch + 1, knots); row B has the times at K = 0, knot, 2 x knot, ...
        knot_tokens: distance of two knots, tokens of context.
        straggler: weight of B x longest context in K, see `DecodeModel`.
        floor_s: shortest step by batch size, seconds: the slowest of the other data-parallel ranks
            takes as long. The last entry counts for all larger batches.
    """

    seconds: Floats
    knot_tokens: float
    straggler: float
    floor_s: Floats = NO_FLOOR

    @classmethod
    def from_model(
        cls,
        model: DecodeModel,
        max_batch: int,
        kv_tokens: int,
        graph_batches: Sequence[int] = (),
        knots: int = 2,
    ) -> "StepTable":
        """Return the table of an analytic model.

        Args:
            model: the model.
            max_batch: largest batch of a step.
            kv_tokens: context at the last knot, tokens; beyond it the last slope continues.
            graph_batches: sizes for which CUDA graphs were captured: a step costs as much as the
                next larger captured size. Empty: no padding.
            knots: two describe the model exactly; more can be learned later.
        """
        if max_batch < 1 or kv_tokens < 1 or knots < 2:
            raise InputError(
                f"step table: max_batch {max_batch}, kv_tokens {kv_tokens} and knots {knots} "
                "must be at least 1, 1 and 2"
            )
        knot = kv_tokens / (knots - 1)
        captured = sorted(set(graph_batches))
        seconds = np.zeros((max_batch + 1, knots))
        for batch in range(1, max_batch + 1):
            padded = next((size for size in captured if size >= batch), batch)
            for k in range(knots):
                # `step_s` blends with the longest row; K is the blend already.
                seconds[batch, k] = _step_at(model, padded, k * knot)
        return cls(seconds, knot, model.straggler)

    def step_s(self, batch: int, total_context: float, max_context: float = 0.0) -> float:
        """Return the predicted duration in seconds; see `DecodeModel.step_s`."""
        context = (1.0 - self.straggler) * total_context + self.straggler * batch * max_context
        row = self.seconds[min(batch, len(self.seconds) - 1)]
        x = context / self.knot_tokens
        left = min(int(x), len(row) - 2)
        own_s = float(row[left] + (x - left) * (row[left + 1] - row[left]))
        return max(own_s, float(self.floor_s[min(batch, len(self.floor_s) - 1)]))


def _step_at(model: DecodeModel, batch: int, context: float) -> float:
    flat = DecodeModel(
        model.fixed_s,
        model.experts_s,
        model.expert_fraction,
        model.per_context_token_s,
        model.per_request_s,
    )
    return flat.step_s(batch, context)
