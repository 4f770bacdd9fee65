"""Slack: choose who runs in a decode step so that as many requests as possible keep their pace.

Method and parameters: docs/explanation/slack.md.
"""

import math
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from kairos.latency.calibration import Calibration
from kairos.latency.table import StepTable
from kairos.policy.length import LengthEstimator
from kairos.policy.residents import Rows
from kairos.validation import Range, check_range, check_ranges


class DecodePolicy(Protocol):
    """What the engine and the simulator need of a decode policy."""

    max_batch: int

    def admit(
        self, waiting: Rows, now_s: float, kv_tokens: int, kv_capacity: int, slots: int
    ) -> npt.NDArray[np.int64]:
        """Indices of the `waiting` rows to admit now, most urgent first.

        Args:
            kv_tokens: tokens of KV in use, of `kv_capacity`.
            slots: requests that may be admitted at most.
        """

    def select(self, residents: Rows, now_s: float) -> float:
        """Set the `runs` field of every row; returns the predicted step time in seconds."""

    def observe(self, predicted_s: float, measured_s: float) -> None:
        """Learn from a step that ran: what `select` returned and what it took."""

    def completed(self, group: int, output_tokens: int) -> None:
        """Learn from a request that ended after so many tokens, the first one not counted."""


_RANGES = {
    "min_pace_ratio": Range(0.0, 1.0),
    "min_step_share": Range(0.0, 1.0),
    "guard_tokens": Range(0.0, 1e3),
    "horizon_min": Range(1.0, 1e6),
    "express_tokens": Range(0.0, 1e3),
    "starvation_s": Range(0.0, math.inf),
    "period": Range(1, 10_000),
    "kv_share": Range(0.01, 1.0),
}


class SlackParams(NamedTuple):
    """Attributes:
    min_pace_ratio: a request is infeasible when the pace it may take falls below this share of its
        TPOT objective; it stops being one when the pace reaches the objective again.
    min_step_share: a step is planned no shorter than this share of the tightest TPOT objective.
    guard_tokens: slack that is never spent, in tokens.
    horizon_min: tokens over which a fresh request has to catch up; grows with its output.
    horizon_max: up to this. A length estimator replaces both.
    express_tokens: a request that is behind before its so-many-th token gets short steps while
        the others can sit out; 0 disables.
    starvation_s: who got no token for so many seconds comes first.
    period: steps between two selections; between them everybody who joined runs.
    kv_share: share of KV capacity that admission may fill.
    infeasible_share: share of KV capacity and of slots in use up to which an infeasible request may
        join. Without it they fill both, and new, feasible requests wait.
    """

    min_pace_ratio: float = 0.7
    min_step_share: float = 0.95
    guard_tokens: float = 2.0
    horizon_min: float = 16.0
    horizon_max: float = 128.0
    express_tokens: float = 4.0
    starvation_s: float = 5.0
    period: int = 1
    kv_share: float = 0.96
    infeasible_share: float = 0.6

    def check(self) -> None:
        """Raise `InputError` for a value out of range."""
        check_ranges("slack", self, _RANGES)
        check_range("slack: horizon_max", self.horizon_max, Range(self.horizon_min, 1e6))
        check_range("slack: infeasible_share", self.infeasible_share, Range(0.01, self.kv_share))


class SlackPolicy:
    """Args:
    table: predicts step times; may be replaced as they are learned.
    max_batch: most requests in a step.
    lengths: predicts how much output remains; None: as much as there is already.
    """

    def __init__(
        self,
        table: StepTable,
        max_batch: int,
        params: SlackParams | None = None,
        lengths: LengthEstimator | None = None,
    ) -> None:
        from kairos.policy import slack_kernel

        self.params = params or SlackParams()
        self.params.check()
        self.max_batch = max_batch
        self.calibration = Calibration()
        self._kernel = slack_kernel
        self.table = table
        self._lengths = lengths
        self._unknown = np.zeros((1, 1))
        self._steps = 0

    def admit(
        self, waiting: Rows, now_s: float, kv_tokens: int, kv_capacity: int, slots: int
    ) -> npt.NDArray[np.int64]:
        admitted: Any = self._kernel.admit(
            waiting,
            now_s,
            self.params,
            self._horizons,
            float(kv_tokens),
            kv_capacity,
            slots,
            self.max_batch,
        )
        return np.asarray(admitted)

    def select(self, residents: Rows, now_s: float) -> float:
        self._steps += 1
        factor = self.calibration.factor
        if self._steps % self.params.period:
            return self.running_step_s(residents)
        return float(
            self._kernel.select(
                residents,
                now_s,
                self.table,
                factor,
                self.params,
                self._horizons,
                self.max_batch,
            )
        )

    def running_step_s(self, residents: Rows) -> float:
        """Predicted seconds of a step of the rows that are set to run."""
        return float(self._kernel.running_step_s(residents, self.table, self.calibration.factor))

    def all_run_for(self, residents: Rows, now_s: float, steps: int) -> bool:
        """Whether `select` would choose everybody now and in each of the next `steps` steps, as
        long as nobody joins and steps take no longer than predicted."""
        return bool(
            self._kernel.all_run_for(
                residents,
                now_s,
                self.table,
                self.calibration.factor,
                self.params,
                self.max_batch,
                steps,
            )
        )

    def retention_order(
        self, residents: Rows, now_s: float, reload_s_per_token: float = 0.0
    ) -> list[int]:
        """Indices in the order in which rows are to be kept when memory runs out: first who has no
        time to lose, last the victims, of these the cheapest to bring back at the very end.

        Args:
            reload_s_per_token: what a retracted request loses per token of context, seconds.
        """
        reload_s = reload_s_per_token * residents["context_tokens"]
        due_s = residents["first_token_s"] + residents["tpot_s"] * (residents["output_tokens"] + 1)
        spare_s = np.where(residents["infeasible"], -reload_s, due_s - now_s - reload_s)
        order = np.lexsort((residents["id"], spare_s, residents["infeasible"]))
        return [int(at) for at in order]

    def observe(self, predicted_s: float, measured_s: float) -> None:
        self.calibration.observe(predicted_s / self.calibration.factor, measured_s)

    def completed(self, group: int, output_tokens: int) -> None:
        if self._lengths is not None:
            self._lengths.observe(group, output_tokens)

    @property
    def _horizons(self) -> npt.NDArray[np.float64]:
        return self._unknown if self._lengths is None else self._lengths.horizons
