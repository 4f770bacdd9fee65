"""Decode policies to compare with: continuous batching, and greedy packing."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kairos.latency.calibration import Calibration
from kairos.latency.table import StepTable
from kairos.policy.residents import Rows, keep_longest_output

KV_SHARE = 0.96
"""Share of KV that admission may fill; residents grow into the rest."""


def first_come(
    waiting: Rows, used_tokens: float, limit_tokens: float, slots: int
) -> npt.NDArray[np.int64]:
    """Indices of the waiting rows to admit, in order of arrival until one does not fit.

    Args:
        waiting: rows, see `kairos.policy.residents.ROW`.
        used_tokens: tokens in use.
        limit_tokens: tokens that may be in use.
        slots: requests that may be admitted at most.
    """
    order = np.lexsort((waiting["id"], waiting["first_token_s"]))[: max(0, slots)]
    total = used_tokens + np.cumsum(waiting["context_tokens"][order])
    fits = total <= limit_tokens
    if used_tokens == 0.0 and len(fits):
        fits[0] = True
    return order[: len(fits) if fits.all() else int(np.argmin(fits))]


@dataclass(slots=True)
class ContinuousPolicy:
    """Continuous batching: first come first served, and every resident runs in every step.

    Attributes:
        table: predicts step times.
        max_batch: static cap on the batch.
    """

    table: StepTable
    max_batch: int

    def admit(
        self,
        waiting: Rows,
        now_s: float,
        kv_tokens: int,
        kv_capacity: int,
        slots: int,
    ) -> npt.NDArray[np.int64]:
        """See `DecodePolicy.admit`."""
        return first_come(waiting, kv_tokens, KV_SHARE * kv_capacity, slots)

    def select(self, residents: Rows, now_s: float) -> float:
        """See `DecodePolicy.select`."""
        residents["runs"] = True
        return self.running_step_s(residents)

    def running_step_s(self, residents: Rows) -> float:
        """See `SlackPolicy.running_step_s`."""
        context = residents["context_tokens"][residents["runs"]]
        return self.table.step_s(len(context), float(context.sum()), float(context.max()))

    def retention_order(
        self, residents: Rows, now_s: float, reload_s_per_token: float = 0.0
    ) -> list[int]:
        """See `SlackPolicy.retention_order`."""
        return keep_longest_output(residents)

    def observe(self, predicted_s: float, measured_s: float) -> None:
        """Do nothing: the policy does not use predictions."""

    def completed(self, group: int, output_tokens: int) -> None:
        """Do nothing: the policy does not use lengths."""


class GreedyPolicy:
    """Pack short requests first while the step stays within the tightest slack of the batch.

    This is the literal reading of the paper's abstract. It fails in sustained overload.

    Args:
        table: predicts step times.
        max_batch: static cap on the batch.
    """

    def __init__(self, table: StepTable, max_batch: int) -> None:
        from kairos.policy import slack_kernel

        self.max_batch = max_batch
        self.calibration = Calibration()
        self.table = table
        self._kernel = slack_kernel

    def admit(
        self,
        waiting: Rows,
        now_s: float,
        kv_tokens: int,
        kv_capacity: int,
        slots: int,
    ) -> npt.NDArray[np.int64]:
        """See `DecodePolicy.admit`."""
        return first_come(waiting, kv_tokens, KV_SHARE * kv_capacity, slots)

    def select(self, residents: Rows, now_s: float) -> float:
        """See `DecodePolicy.select`."""
        slack: Any = (
            residents["first_token_s"]
            + residents["tpot_s"] * (residents["output_tokens"] + 1)
            - now_s
        )
        cost = self._kernel.StepCost(self.table, self.calibration.factor)
        residents["runs"] = False
        tightest = np.inf
        batch, total, longest = 0, 0.0, 0.0
        for at in np.lexsort((residents["id"], residents["context_tokens"])):
            context = float(residents["context_tokens"][at])
            bound = min(tightest, max(float(slack[at]), float(residents["tpot_s"][at])))
            larger = max(longest, context)
            if batch and self._kernel.step_s(cost, batch + 1, total + context, larger) > bound:
                continue
            residents["runs"][at] = True
            batch, total, longest, tightest = batch + 1, total + context, larger, bound
        return self.running_step_s(residents)

    def running_step_s(self, residents: Rows) -> float:
        """See `SlackPolicy.running_step_s`."""
        return float(self._kernel.running_step_s(residents, self.table, self.calibration.factor))

    def retention_order(
        self, residents: Rows, now_s: float, reload_s_per_token: float = 0.0
    ) -> list[int]:
        """See `SlackPolicy.retention_order`."""
        return keep_longest_output(residents)

    def observe(self, predicted_s: float, measured_s: float) -> None:
        """See `DecodePolicy.observe`."""
        self.calibration.observe(predicted_s / self.calibration.factor, measured_s)

    def completed(self, group: int, output_tokens: int) -> None:
        """Do nothing: the policy does not use lengths."""
