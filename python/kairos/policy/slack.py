"""Slack: choose who runs in a decode step so that as many requests as possible keep their pace.

The method and why each part is there: SLACK.md beside this file.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kairos.errors import InputError
from kairos.latency.calibration import Calibration
from kairos.latency.table import StepTable
from kairos.policy.residents import Rows


class DecodePolicy(Protocol):
    """What the engine and the simulator need of a decode policy."""

    max_batch: int
    kv_share: float

    def admission_order(self, waiting: Rows, now_s: float) -> npt.NDArray[np.int64]:
        """Indices of `waiting` in the order in which they should be admitted."""

    def select(self, residents: Rows, now_s: float) -> float:
        """Set the `runs` field of every row; returns the predicted step time in seconds."""

    def observe(self, predicted_s: float, measured_s: float) -> None:
        """Learn from a step that ran: what `select` returned and what it took."""


@dataclass(frozen=True, slots=True)
class SlackParams:
    """Attributes:
    give_up: a request becomes a victim when the pace it may take falls below this share of its
        TPOT objective; it stops being one when the pace reaches the objective again.
    floor: a step is planned no shorter than this share of the tightest TPOT objective.
    guard_tokens: slack that is never spent, in tokens.
    starve_s: a victim gets a token at least this often, seconds.
    period: steps between two selections; between them everybody who joined runs.
    kv_share: share of KV capacity that admission may fill.
    """

    give_up: float = 0.7
    floor: float = 0.9
    guard_tokens: float = 2.0
    starve_s: float = 5.0
    period: int = 1
    kv_share: float = 0.96

    def __post_init__(self) -> None:
        allowed = {
            "give_up": (self.give_up, 0.0, 1.0),
            "floor": (self.floor, 0.0, 1.0),
            "guard_tokens": (self.guard_tokens, 0.0, 1000.0),
            "starve_s": (self.starve_s, 0.0, math.inf),
            "period": (self.period, 1, 10_000),
            "kv_share": (self.kv_share, 0.01, 1.0),
        }
        for name, (value, low, high) in allowed.items():
            if not low <= value <= high:
                raise InputError(f"slack: {name} = {value!r}; allowed are {low:g} to {high:g}")


class SlackPolicy:
    """Args:
    table: predicts step times.
    max_batch: most requests in a step.
    """

    def __init__(self, table: StepTable, max_batch: int, params: SlackParams | None = None) -> None:
        from kairos.policy import slack_kernel

        self.params = params or SlackParams()
        self.max_batch = max_batch
        self.kv_share = self.params.kv_share
        self.calibration = Calibration()
        self._kernel = slack_kernel
        self._table = table
        self._steps = 0

    def admission_order(self, waiting: Rows, now_s: float) -> npt.NDArray[np.int64]:
        p = self.params
        order: Any = self._kernel.admission_order(waiting, now_s, p.give_up, p.guard_tokens)
        return np.asarray(order)

    def select(self, residents: Rows, now_s: float) -> float:
        p = self.params
        self._steps += 1
        if self._steps % p.period:
            return float(self._kernel.running_step_s(residents, self._scaled()))
        return float(
            self._kernel.select(
                residents, now_s, self._scaled(), p.give_up, p.floor, p.guard_tokens, p.starve_s
            )
        )

    def observe(self, predicted_s: float, measured_s: float) -> None:
        self.calibration.observe(predicted_s / self.calibration.factor, measured_s)

    def _scaled(self) -> tuple[npt.NDArray[np.float64], float, float, float]:
        t = self._table
        return (t.seconds, t.knot_tokens, t.straggler, self.calibration.factor)
