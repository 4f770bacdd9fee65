"""One simulated decode instance."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np

from kairos.latency import InstanceLimits
from kairos.latency.table import StepTable
from kairos.policy.residents import DecodeResident, Residents, Rows
from kairos.policy.slack import DecodePolicy
from kairos.sim import decode_kernel
from kairos.sim.baselines.decode import first_come
from kairos.sim.prefill_server import exact
from kairos.sim.records import Ints, SimRecords


class RetractingDecodePolicy(DecodePolicy, Protocol):
    """A decode policy that also orders residents for retraction."""

    def retention_order(
        self, residents: Rows, now_s: float, reload_s_per_token: float = 0.0
    ) -> list[int]:
        """Indices of the rows in the order in which they are to be kept when memory runs out."""


class DecodeEngine(NamedTuple):
    """How a simulated decode instance runs.

    Attributes:
        table: true step times.
        limits: memory and batch size.
        noise: factor of the next step's true time.
        lookahead: whether a step is composed when the one before it starts. A request that arrives
            during a step then waits for the step after the next one, and a request that has just
            finished runs once more without effect.
        change_cost_s: added to a step in which a resident is skipped or resumed, seconds.
        reload_s_per_token: time for which moving a retracted request out stops the steps, and again
            for moving it in, seconds per token of context.
        joins_in_order: whether requests join in the order of arrival, as on SGLang after
            preallocation, and not in the policy's order of admission.
        sends_first_token: whether first tokens are sent from here, when a request is admitted.
    """

    table: StepTable
    limits: InstanceLimits
    noise: Callable[[], float] = exact
    lookahead: bool = True
    change_cost_s: float = 0.0
    reload_s_per_token: float = 0.0
    joins_in_order: bool = False
    sends_first_token: bool = False


class SimulatedStep(NamedTuple):
    """A composed decode step.

    Attributes:
        batch: ids of the requests that run.
        predicted_s: duration that the policy predicts, seconds.
        true_s: duration that the step takes, seconds.
    """

    batch: Ints
    predicted_s: float
    true_s: float


class _HeldToken(NamedTuple):
    """First token of a request that was admitted to a step that has not started."""

    request: int
    ready_s: float
    hold_until_s: float


class DecodeServer:
    """A decode instance that admits requests, selects those that run, and retracts.

    Args:
        policy: order of admission, selection, and order of retraction.
        engine: how the instance runs.
        records: updated with every token.

    Attributes:
        running: admitted requests.
        waiting: requests whose KV has arrived, and retracted ones.
        next_step: the step composed ahead.
        idle: whether no step runs.
        kv_tokens: context tokens of `running`.
        reserved_tokens: memory reserved for prompts that have not arrived, tokens.
        busy_s: seconds of all steps.
        wasted_rows: rows that ran once more after their request had finished.
        retractions: requests moved out for lack of memory.
    """

    def __init__(
        self, policy: RetractingDecodePolicy, engine: DecodeEngine, records: SimRecords
    ) -> None:
        self.policy = policy
        self.running = Residents()
        self.waiting = Residents()
        self.next_step: SimulatedStep | None = None
        self.idle = True
        self.kv_tokens = 0
        self.reserved_tokens = 0
        self.busy_s = 0.0
        self.wasted_rows = 0
        self.retractions = 0
        self._engine = engine
        self._records = records
        self._retracted: set[int] = set()
        self._held: list[_HeldToken] = []
        self._batch = np.empty(engine.limits.max_batch, np.int64)
        self._finished = np.empty(engine.limits.max_batch, np.int64)

    @property
    def load_tokens(self) -> int:
        """Context tokens held, waiting and reserved: the load that a router compares."""
        waiting = int(self.waiting.rows["context_tokens"].sum()) if len(self.waiting) else 0
        return self.kv_tokens + self.reserved_tokens + waiting

    def receive(self, resident: DecodeResident) -> None:
        """Take in a prompt whose KV has arrived."""
        self.waiting.add(resident)

    def start(self, now_s: float) -> SimulatedStep | None:
        """Run the next step from `now_s` on; returns it, or None without requests."""
        step = self.next_step or self._compose(now_s, now_s)
        self.next_step = None
        self.idle = step is None
        if step is None:
            return None
        self._release_first_tokens(now_s)
        self.busy_s += step.true_s
        if self._engine.lookahead:
            self.next_step = self._compose(now_s, now_s + step.predicted_s)
        return step

    def finish(self, step: SimulatedStep, now_s: float) -> int:
        """End the running step; returns how many requests have all their tokens now."""
        self.idle = True
        self.policy.observe(step.predicted_s, step.true_s)
        count = decode_kernel.emit(step.batch, now_s, self._records, self._finished)
        for request in self._finished[:count].tolist():
            # A request may have been retracted while its last token was being made.
            if request in self.running:
                row = self.running.remove(request)
                self.kv_tokens -= int(row["context_tokens"])
            else:
                row = self.waiting.remove(request)
                self._retracted.discard(request)
            # Lengths are learned as residents count them, without the first token.
            output_tokens = int(self._records.output_tokens[request]) - 1
            self.policy.completed(int(row["length_group"]), output_tokens)
        if count and self.next_step is not None:
            self.wasted_rows += int(np.isin(self.next_step.batch, self._finished[:count]).sum())
        return count

    def _compose(self, now_s: float, start_s: float) -> SimulatedStep | None:
        """Admit, free memory and select for a step that starts at `start_s`."""
        before = self.running.rows["runs"].copy()
        moved_tokens = self._admit(now_s, start_s) if len(self.waiting) else 0
        if not len(self.running):
            return None
        if self.kv_tokens + len(self.running) > self._engine.limits.kv_tokens:
            moved_tokens += self._retract(start_s)
            before = before[:0]
        rows = self.running.rows
        predicted_s = self.policy.select(rows, start_s)
        step_s, count, changed = decode_kernel.launch(
            rows, before, self._engine.table, start_s + predicted_s, self._batch
        )
        self.kv_tokens += count
        true_s = step_s * self._engine.noise() + moved_tokens * self._engine.reload_s_per_token
        if changed:
            true_s += self._engine.change_cost_s
        return SimulatedStep(self._batch[:count].copy(), predicted_s, true_s)

    def _admit(self, now_s: float, start_s: float) -> int:
        """Admit waiting requests to the step; returns the tokens of retracted ones among them."""
        slots = self.policy.max_batch - len(self.running)
        waiting = self.waiting.rows
        capacity = self._engine.limits.kv_tokens
        if self._engine.joins_in_order:
            admitted = first_come(waiting, self.kv_tokens, capacity, slots)
        else:
            admitted = self.policy.admit(waiting, start_s, self.kv_tokens, capacity, slots)
        moved_tokens = 0
        for request in waiting["id"][admitted].tolist():
            row = self.waiting.remove(request)
            if row["output_tokens"] == 0:
                self._plan_first_token(row, now_s, start_s)
            if request in self._retracted:
                self._retracted.remove(request)
                moved_tokens += int(row["context_tokens"])
            row["runs"] = True
            self.running.add_row(row)
            self.kv_tokens += int(row["context_tokens"])
        return moved_tokens

    def _plan_first_token(self, row: Any, now_s: float, start_s: float) -> None:
        """Set when the client gets the first token of an admitted request.

        A held first token is sent when the decode slot is ready, see `_release_first_tokens`.
        """
        request, hold_until_s = int(row["id"]), float(row["hold_until_s"])
        ready_s = now_s if self._engine.sends_first_token else float(row["first_token_s"])
        self._held.append(_HeldToken(request, ready_s, hold_until_s))
        first_s = max(ready_s, min(hold_until_s, start_s))
        row["first_token_s"] = row["last_token_s"] = first_s
        self._records.first_s[request] = self._records.last_s[request] = first_s
        self._records.admitted_s[request] = start_s

    def _release_first_tokens(self, now_s: float) -> None:
        """Send the first tokens that were held for the step that starts now.

        With look-ahead the step was composed for a predicted start.
        """
        for request, ready_s, hold_until_s in self._held:
            first_s = max(ready_s, min(hold_until_s, now_s))
            self._records.first_s[request] = self._records.last_s[request] = first_s
            if request in self.running:
                self.running.row(request)["first_token_s"] = first_s
        self._held.clear()

    def _retract(self, start_s: float) -> int:
        """Retract requests while the step could overflow memory; returns the tokens moved out."""
        round_trip_s = 2.0 * self._engine.reload_s_per_token
        order = self.policy.retention_order(self.running.rows, start_s, round_trip_s)
        kept = self.running.rows["id"][order].tolist()
        moved_tokens = 0
        while len(kept) > 1 and self.kv_tokens + len(kept) > self._engine.limits.kv_tokens:
            row = self.running.remove(kept.pop())
            self.kv_tokens -= int(row["context_tokens"])
            moved_tokens += int(row["context_tokens"])
            self.waiting.add_row(row)
            self._retracted.add(int(row["id"]))
            self.retractions += 1
        return moved_tokens
