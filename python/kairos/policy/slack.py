"""Slack: choose the requests of each decode step so that as many as possible keep their pace.

The method and its parameters: docs/explanation/slack.md.
"""

import math
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from kairos.latency.calibration import Calibration
from kairos.latency.table import StepTable
from kairos.policy.best_effort import ObjectiveTraffic
from kairos.policy.length import LengthEstimator
from kairos.policy.residents import ROW, Rows, keep_longest_output
from kairos.validation import Range, check_range, check_ranges


class DecodePolicy(Protocol):
    """The interface of a decode policy for the engine and the simulator."""

    max_batch: int

    def admit(
        self, waiting: Rows, now_s: float, kv_tokens: int, kv_capacity: int, slots: int
    ) -> npt.NDArray[np.int64]:
        """Return the indices of the waiting rows to admit now, most urgent first.

        Args:
            waiting: rows of requests that are not admitted.
            now_s: time on the policy's clock.
            kv_tokens: tokens of KV in use.
            kv_capacity: tokens of KV in total.
            slots: requests that may be admitted at most.
        """

    def select(self, residents: Rows, now_s: float) -> float:
        """Set the `runs` field of every row; return the predicted step time in seconds."""

    def observe(self, predicted_s: float, measured_s: float) -> None:
        """Learn from a step that ran.

        Args:
            predicted_s: the value that `select` returned.
            measured_s: duration of the step, seconds.
        """

    def completed(self, group: int, output_tokens: int) -> None:
        """Learn from a request that ended.

        Args:
            group: its length group.
            output_tokens: tokens after the first one.
        """


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
    """Parameters of the slack policy.

    Attributes:
        min_pace_ratio: a request becomes infeasible when the pace that it needs falls below this
            share of its TPOT objective; it is feasible again when the pace reaches the objective.
        min_step_share: a step is planned no shorter than this share of the tightest TPOT objective.
        guard_tokens: slack that is never spent, in tokens.
        horizon_min: tokens over which a new request has to catch up; the horizon grows with its
            output.
        horizon_max: largest such horizon, tokens. A length estimator replaces both.
        express_tokens: a request that is behind before this many tokens gets short steps while
            the others can sit out; 0 disables.
        starvation_s: a request without a token for this many seconds comes first.
        period: steps between two selections; between them every request that joined runs.
        kv_share: share of KV capacity that admission may fill.
        infeasible_share: share of KV capacity and of slots in use up to which an infeasible request
            may join. Without it they fill both, and new, feasible requests wait.
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
    """Selects the requests of each decode step by their slack.

    The first construction in a process compiles or loads the kernels, which takes seconds once per
    machine.

    Args:
        table: predicts step times; may be replaced as they are learned.
        max_batch: most requests in a step.
        params: of the policy.
        lengths: predicts how much output remains. None: as much as there is already.

    Attributes:
        calibration: measured / predicted step time.
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
        self._traffic = ObjectiveTraffic()
        self._paid_s = math.inf  # last step in which skipping could keep a request on pace
        self._compile()

    def admit(
        self, waiting: Rows, now_s: float, kv_tokens: int, kv_capacity: int, slots: int
    ) -> npt.NDArray[np.int64]:
        """Return the indices of the waiting rows to admit; see `DecodePolicy.admit`."""
        limits = self._kernel.AdmitLimits(
            float(kv_tokens), float(kv_capacity), slots, self.max_batch
        )
        params = self.params
        if self._kernel.has_objective(waiting):
            self._traffic.note(now_s)
        unpaid = now_s > self._paid_s + params.starvation_s
        if unpaid or not self._traffic.expected(now_s):
            # Memory and slots that are kept free would keep no request on pace.
            params = params._replace(infeasible_share=1.0)
        admitted: Any = self._kernel.admit(waiting, now_s, params, self._horizons, limits)
        return np.asarray(admitted)

    def select(self, residents: Rows, now_s: float) -> float:
        """Choose the requests of a step; see `DecodePolicy.select`."""
        self._steps += 1
        if self._kernel.has_objective(residents):
            self._traffic.note(now_s)
        if self._steps % self.params.period:
            return self.running_step_s(residents)
        step_s, pays = self._kernel.select(
            residents,
            now_s,
            self.table,
            self.calibration.factor,
            self.params,
            self._horizons,
            self.max_batch,
        )
        self._paid_s = now_s if pays else min(self._paid_s, now_s)
        return float(step_s)

    def running_step_s(self, residents: Rows) -> float:
        """Return the predicted seconds of a step of the rows that are set to run."""
        return float(self._kernel.running_step_s(residents, self.table, self.calibration.factor))

    def all_run_for(self, residents: Rows, now_s: float, steps: int) -> bool:
        """Return whether `select` would choose all rows now and in each of the next steps.

        Args:
            residents: the rows. None may join meanwhile.
            now_s: start of the first step.
            steps: how many follow. They may take no longer than predicted.
        """
        all_run = self._kernel.all_run_for(
            residents,
            now_s,
            self.table,
            self.calibration.factor,
            self.params,
            self.max_batch,
            steps,
        )
        return bool(all_run)

    def retention_order(
        self, residents: Rows, now_s: float, reload_s_per_token: float = 0.0
    ) -> list[int]:
        """Return the indices in the order in which rows are kept when memory runs out.

        Feasible rows come first, those with the least time to lose in front. Infeasible and
        best-effort rows follow, those that are cheapest to bring back at the end. Without any
        objective, the order is SGLang's.

        Args:
            residents: the rows.
            now_s: time on the policy's clock.
            reload_s_per_token: time that a retracted request loses per token of context, seconds.
        """
        if not self._kernel.has_objective(residents):
            return keep_longest_output(residents)
        reload_s = reload_s_per_token * residents["context_tokens"]
        due_s = residents["first_token_s"] + residents["tpot_s"] * (residents["output_tokens"] + 1)
        spare_s = np.where(residents["infeasible"], -reload_s, due_s - now_s - reload_s)
        order = np.lexsort((residents["id"], spare_s, residents["infeasible"]))
        return [int(at) for at in order]

    def observe(self, predicted_s: float, measured_s: float) -> None:
        """Calibrate step times; see `DecodePolicy.observe`."""
        self.calibration.observe(predicted_s / self.calibration.factor, measured_s)

    def completed(self, group: int, output_tokens: int) -> None:
        """Learn an output length; see `DecodePolicy.completed`."""
        if self._lengths is not None:
            self._lengths.observe(group, output_tokens)

    def _compile(self) -> None:
        """Call every kernel of a step once, so that no step of a server waits for the compiler."""
        rows = np.ones(2, ROW)
        self.running_step_s(rows)
        self.all_run_for(rows, 0.0, 1)
        self._kernel.select(
            rows,
            0.0,
            self.table,
            self.calibration.factor,
            self.params,
            self._horizons,
            self.max_batch,
        )

    @property
    def _horizons(self) -> npt.NDArray[np.float64]:
        return self._unknown if self._lengths is None else self._lengths.horizons
