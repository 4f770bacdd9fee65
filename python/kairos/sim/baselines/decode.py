"""Decode policies to compare with."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kairos.latency.calibration import Calibration
from kairos.latency.table import StepTable
from kairos.policy.residents import Rows

KV_SHARE = 0.96
"""Share of KV that admission may fill; the rest is room for residents to grow."""


def first_come(waiting: Rows, held: float, room: float, slots: int) -> npt.NDArray[np.int64]:
    """Indices of the waiting rows to admit in order of arrival, until one does not fit."""
    order = np.lexsort((waiting["id"], waiting["first_token_s"]))[: max(0, slots)]
    total = held + np.cumsum(waiting["context_tokens"][order])
    fits = total <= room
    if held == 0.0 and len(fits):
        fits[0] = True
    return order[: len(fits) if fits.all() else int(np.argmin(fits))]


def keep_longest_output(residents: Rows) -> list[int]:
    """Upstream's order of retraction: those with the most output are kept first, of these those
    with the least context."""
    order = np.lexsort((residents["id"], residents["context_tokens"], -residents["output_tokens"]))
    return [int(at) for at in order]


@dataclass(slots=True)
class ContinuousPolicy:
    """Continuous batching: first come first served, everybody admitted runs in every step.

    Attributes:
        max_batch: a static cap on the batch.
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
        return first_come(waiting, kv_tokens, KV_SHARE * kv_capacity, slots)

    def select(self, residents: Rows, now_s: float) -> float:
        residents["runs"] = True
        context = residents["context_tokens"]
        return self.table.step_s(len(residents), float(context.sum()), float(context.max()))

    def retention_order(
        self, residents: Rows, now_s: float, reload_s_per_token: float = 0.0
    ) -> list[int]:
        return keep_longest_output(residents)

    def observe(self, predicted_s: float, measured_s: float) -> None:
        """Nothing depends on predictions here."""

    def completed(self, group: int, output_tokens: int) -> None:
        """Nor on lengths."""


class GreedyPolicy:
    """The literal reading of the paper's abstract: pack short requests first as long as the step
    stays within the tightest slack of those packed. Fails in sustained overload.
    """

    def __init__(self, table: StepTable, max_batch: int) -> None:
        from kairos.policy import slack_kernel

        self.max_batch = max_batch
        self.calibration = Calibration()
        self._kernel = slack_kernel
        self._table = table

    def admit(
        self,
        waiting: Rows,
        now_s: float,
        kv_tokens: int,
        kv_capacity: int,
        slots: int,
    ) -> npt.NDArray[np.int64]:
        return first_come(waiting, kv_tokens, KV_SHARE * kv_capacity, slots)

    def select(self, residents: Rows, now_s: float) -> float:
        slack: Any = (
            residents["first_token_s"]
            + residents["tpot_s"] * (residents["output_tokens"] + 1)
            - now_s
        )
        table, factor = self._table, self.calibration.factor
        cost = self._kernel.StepCost(table, factor)
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
        return float(self._kernel.running_step_s(residents, table, factor))

    def retention_order(
        self, residents: Rows, now_s: float, reload_s_per_token: float = 0.0
    ) -> list[int]:
        return keep_longest_output(residents)

    def observe(self, predicted_s: float, measured_s: float) -> None:
        self.calibration.observe(predicted_s / self.calibration.factor, measured_s)

    def completed(self, group: int, output_tokens: int) -> None:
        """Nothing depends on lengths here."""
