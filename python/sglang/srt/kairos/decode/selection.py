"""The selection of the requests that run in a decode step."""

import math

import numpy as np
from sglang.srt.kairos.decode.counters import DecodeCounters
from sglang.srt.kairos.decode.held_tokens import HeldTokens
from sglang.srt.kairos.decode.rows import DecodeRows, all_set
from sglang.srt.kairos.decode.skipping import step_obstacle
from sglang.srt.kairos.decode.steps import DecodeSteps
from sglang.srt.kairos.shared_clock import SharedClock
from sglang.srt.kairos.upstream import ScheduleBatch

from kairos.policy.slack import SlackPolicy

# Splitting the batch may cost this share of the steps until the next selection, which is at most
# this many steps away.
CHANGE_SHARE = 0.02
MAX_PERIOD = 8

# The period is derived from at least this many splits, and only now and then, in steps.
MIN_SPLITS = 32
PERIOD_EVERY = 64


class DecodeSelection:
    """Selects the requests of each step, by the slack policy and upstream's restrictions.

    Args:
        policy: selects.
        rows: the requests of the running batch.
        steps: predicts the duration of a step.
        clock: shares the period between ranks.
        held: first tokens held back; None: first tokens are streamed at once.
        counters: where selections are counted.
    """

    def __init__(
        self,
        policy: SlackPolicy,
        rows: DecodeRows,
        steps: DecodeSteps,
        clock: SharedClock,
        held: HeldTokens | None,
        counters: DecodeCounters,
    ) -> None:
        self.policy = policy
        self.rows = rows
        self.held = held
        self.counters = counters
        self._steps = steps
        self._clock = clock
        self._since_selection = 0

    def step_passed(self) -> None:
        """Note a step in which selection was skipped."""
        self._since_selection += 1

    def select(self, start_s: float, changed: bool, in_flight_s: float) -> float:
        """Set `runs` of the rows.

        Args:
            start_s: start of the step, monotonic seconds.
            changed: requests have joined or left since the last selection.
            in_flight_s: predicted duration of the step before this one.

        Returns:
            The predicted duration of the step, seconds.
        """
        rows = self.rows.rows
        table, factor = self._steps.of_next_step()
        self.policy.table, self.policy.calibration.factor = table, factor
        self._since_selection += 1
        if not changed and self._since_selection < self.period(in_flight_s):
            return self.policy.running_step_s(rows)
        self._since_selection = 0
        if self.held is not None and self.held.count:
            self.held.defer_clocks(rows, start_s)
        before = rows["runs"].copy()
        step_s = self.policy.select(rows, start_s)
        if not all_set(before):
            starving = start_s - rows["last_token_s"] > self.policy.params.starvation_s
            granted = (starving & rows["runs"] & ~before).sum()
            self.counters.starvation_grants += int(granted)
        return step_s

    def restrict(self, batch: ScheduleBatch, start_s: float, step_s: float) -> float:
        """Add requests to the step that must not be skipped.

        Args:
            batch: the running batch, in the order of the rows.
            start_s: start of the step, monotonic seconds.
            step_s: predicted duration of the step as selected, seconds.

        Returns:
            The predicted duration of the step, seconds.
        """
        rows = self.rows.rows
        first = np.flatnonzero(self.rows.unskippable).tolist()
        crowded = len(first) > self.policy.max_batch
        # An abort takes effect when the request's next result is processed.
        first += [at for at, req in enumerate(batch.reqs) if req.to_finish and at not in first]
        if not all_set(rows["runs"][first]):
            self._run_first(first, start_s)
            step_s = self.policy.running_step_s(rows)
        obstacle = "penalties" if crowded else step_obstacle(batch, rows["runs"])
        if obstacle is not None:
            self.counters.obstacles[obstacle] += 1
            rows["runs"] = True
            return self.policy.running_step_s(rows)
        return step_s

    def period(self, in_flight_s: float) -> int:
        """Return the steps between two selections, so that splitting costs a small share of them.

        Args:
            in_flight_s: predicted duration of the newest step, seconds.
        """
        period: int = self._clock.learned("decode_period", 1)
        split_s = self.counters.split_s
        due = len(split_s) >= MIN_SPLITS and self.counters.steps % PERIOD_EVERY == 0
        if due and in_flight_s > 0.0:
            wanted = math.ceil(float(np.median(split_s)) / (CHANGE_SHARE * in_flight_s))
            self._clock.learn("decode_period", min(max(wanted, 1), MAX_PERIOD))
        return period

    def _run_first(self, first: list[int], start_s: float) -> None:
        """Add rows to the step, and remove others where it would exceed the largest step.

        Of the others, those with the most time to spare are removed first. Rows that do not fit
        even so run in the next step.

        Args:
            first: the rows, in the order in which they get a place.
            start_s: start of the step, monotonic seconds.
        """
        runs = self.rows.rows["runs"]
        runs[first] = True
        if np.count_nonzero(runs) <= self.policy.max_batch:
            return
        order = self.policy.retention_order(self.rows.rows, start_s)
        others = [at for at in order if runs[at] and at not in first]
        runs[:] = False
        runs[[*first, *others][: self.policy.max_batch]] = True
