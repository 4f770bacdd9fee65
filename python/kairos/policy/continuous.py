"""Decode policies to compare with."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kairos.latency.calibration import Calibration
from kairos.latency.table import StepTable
from kairos.policy.residents import Rows


@dataclass(slots=True)
class ContinuousPolicy:
    """Continuous batching: first come first served, everybody admitted runs in every step.

    Attributes:
        max_batch: a static cap on the batch.
        kv_share: share of KV capacity that admission may fill.
    """

    table: StepTable
    max_batch: int
    kv_share: float = 1.0

    def admission_order(self, waiting: Rows, now_s: float) -> npt.NDArray[np.int64]:  # noqa: ARG002
        return np.lexsort((waiting["id"], waiting["first"]))

    def select(self, residents: Rows, now_s: float) -> float:  # noqa: ARG002
        residents["runs"] = True
        context = residents["context"]
        return self.table.step_s(len(residents), float(context.sum()), float(context.max()))

    def observe(self, predicted_s: float, measured_s: float) -> None:
        """Nothing depends on predictions here."""


class GreedyPolicy:
    """The literal reading of the paper's abstract: pack short requests first as long as the step
    stays within the tightest slack of those packed. Fails in sustained overload, see BASELINES.md.
    """

    kv_share = 0.96

    def __init__(self, table: StepTable, max_batch: int) -> None:
        from kairos.policy import slack_kernel

        self.max_batch = max_batch
        self.calibration = Calibration()
        self._kernel = slack_kernel
        self._table = table

    def admission_order(self, waiting: Rows, now_s: float) -> npt.NDArray[np.int64]:  # noqa: ARG002
        return np.lexsort((waiting["id"], waiting["first"]))

    def select(self, residents: Rows, now_s: float) -> float:
        slack: Any = residents["first"] + residents["tau"] * (residents["tokens"] + 1) - now_s
        table = (*self._table, self.calibration.factor)
        residents["runs"] = False
        tightest = np.inf
        batch, total, longest = 0, 0.0, 0.0
        for at in np.lexsort((residents["id"], residents["context"])):
            context = float(residents["context"][at])
            bound = min(tightest, max(float(slack[at]), float(residents["tau"][at])))
            larger = max(longest, context)
            if batch and self._kernel.step_s(table, batch + 1, total + context, larger) > bound:
                continue
            residents["runs"][at] = True
            batch, total, longest, tightest = batch + 1, total + context, larger, bound
        return float(self._kernel.running_step_s(residents, table))

    def observe(self, predicted_s: float, measured_s: float) -> None:
        self.calibration.observe(predicted_s / self.calibration.factor, measured_s)
