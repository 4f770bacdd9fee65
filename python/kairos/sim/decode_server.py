"""One simulated decode instance."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from kairos.latency import InstanceLimits
from kairos.latency.table import StepTable
from kairos.policy.residents import DecodeResident, Residents, Rows
from kairos.policy.slack import DecodePolicy
from kairos.sim import decode_kernel
from kairos.sim.baselines.decode import first_come
from kairos.sim.records import Ints, SimRecords


class RetractingDecodePolicy(DecodePolicy, Protocol):
    """A decode policy that also says whom to retract when memory runs out."""

    def retention_order(
        self, residents: Rows, now_s: float, reload_s_per_token: float = 0.0
    ) -> list[int]:
        """Indices of the rows, those to keep first."""


class SimulatedStep(NamedTuple):
    """A composed step: who runs, and what it takes, predicted and in truth."""

    batch: Ints
    predicted_s: float
    true_s: float


class DecodeServer:
    """Args:
    policy: admission order and selection.
    in_order: memory was given to who arrives here, who therefore joins in the order of arrival, as
        on SGLang; the policy's order of admission is not asked for.
    table: true step times; `noise()` multiplies each.
    lookahead: a step is composed when the one before it starts. Who arrives meanwhile waits for
        the step after it, and who has just finished runs once more, in vain.
    change_cost_s: added to a step in which a resident is parked or resumed.
    reload_s_per_token: moving a retracted request out, and in again, stops the steps for so long.
    streams: first tokens are sent from here, in the pass in which a request is taken in.
    """

    def __init__(
        self,
        policy: RetractingDecodePolicy,
        table: StepTable,
        limits: InstanceLimits,
        records: SimRecords,
        noise: Callable[[], float],
        lookahead: bool,
        change_cost_s: float,
        reload_s_per_token: float,
        in_order: bool = False,
        streams: bool = False,
    ) -> None:
        self.policy = policy
        self._in_order = in_order
        self._streams = streams
        self.running = Residents()
        self.waiting = Residents()
        self.kv_tokens = 0
        self.reserved_tokens = 0
        self.busy_s = 0.0
        self.steps = 0
        self.wasted_rows = 0
        self.retractions = 0
        self._table = table
        self._limits = limits
        self._records = records
        self._noise = noise
        self._lookahead = lookahead
        self._change_cost_s = change_cost_s
        self._reload_s_per_token = reload_s_per_token
        self._retracted: set[int] = set()
        # Admitted to a step that has not started: id, when its first token was ready, until when
        # this may be held.
        self._held: list[tuple[int, float, float]] = []
        self._batch = np.empty(limits.max_batch, np.int64)
        self._finished = np.empty(limits.max_batch, np.int64)
        self._current: SimulatedStep | None = None
        self._next: SimulatedStep | None = None

    @property
    def idle(self) -> bool:
        return self._current is None

    @property
    def load_tokens(self) -> int:
        """Context held, waited for and promised: what a router compares."""
        waiting = int(self.waiting.rows["context_tokens"].sum()) if len(self.waiting) else 0
        return self.kv_tokens + self.reserved_tokens + waiting

    def receive(self, resident: DecodeResident) -> None:
        """A prompt's KV has arrived."""
        self.waiting.add(resident)

    def start(self, now_s: float) -> float | None:
        """Launch the next step; returns its end, None when nobody is here."""
        step = self._next or self._compose(now_s, now_s)
        self._current, self._next = step, None
        if step is None:
            return None
        self._release(now_s)
        self.busy_s += step.true_s
        self.steps += 1
        if self._lookahead:
            self._next = self._compose(now_s, now_s + step.predicted_s)
        return now_s + step.true_s

    def finish(self, now_s: float) -> int:
        """The step ended; returns how many requests have all their tokens now."""
        step, records = self._current, self._records
        assert step is not None
        self._current = None
        self.policy.observe(step.predicted_s, step.true_s)
        count = decode_kernel.emit(
            step.batch,
            now_s,
            records.output_tokens,
            records.made,
            records.first_s,
            records.last_s,
            records.stall_s,
            self._finished,
        )
        for request in self._finished[:count].tolist():
            # A request may have been retracted while its last token was being made.
            if request in self.running:
                row = self.running.remove(request)
                self.kv_tokens -= int(row["context_tokens"])
            else:
                row = self.waiting.remove(request)
                self._retracted.discard(request)
            # Lengths are learned as residents count them, without the first token.
            self.policy.completed(int(row["length_group"]), int(records.output_tokens[request]) - 1)
        if count and self._next is not None:
            self.wasted_rows += int(np.isin(self._next.batch, self._finished[:count]).sum())
        return count

    def _compose(self, now_s: float, start_s: float) -> SimulatedStep | None:
        """Admit, make room and select for a step that starts at `start_s`."""
        before = self.running.rows["runs"].copy()
        moved = self._admit(now_s, start_s) if len(self.waiting) else 0
        if not len(self.running):
            return None
        if self.kv_tokens + len(self.running) > self._limits.kv_tokens:
            moved += self._make_room(start_s)
            before = before[:0]
        rows = self.running.rows
        predicted_s = self.policy.select(rows, start_s)
        step_s, count, changed = decode_kernel.launch(
            rows, before, len(before), self._table, start_s + predicted_s, self._batch
        )
        self.kv_tokens += count
        true_s = step_s * self._noise() + moved * self._reload_s_per_token
        if changed:
            true_s += self._change_cost_s
        return SimulatedStep(self._batch[:count].copy(), predicted_s, true_s)

    def _admit(self, now_s: float, start_s: float) -> int:
        """Take in who may join the step; returns the tokens of those that must be moved back."""
        slots = self.policy.max_batch - len(self.running)
        waiting = self.waiting.rows
        limit = self._limits.kv_tokens
        if self._in_order:
            admitted = first_come(waiting, self.kv_tokens, limit, slots)
        else:
            admitted = self.policy.admit(waiting, start_s, self.kv_tokens, limit, slots)
        records = self._records
        moved = 0
        for request in waiting["id"][admitted].tolist():
            row = self.waiting.remove(request)
            if row["output_tokens"] == 0:
                # The client sees a held first token when the decode slot is ready, see `_release`.
                ready_s = now_s if self._streams else float(row["first_token_s"])
                self._held.append((request, ready_s, float(row["hold_until_s"])))
                row["first_token_s"] = max(ready_s, min(row["hold_until_s"], start_s))
                row["last_token_s"] = row["first_token_s"]
                records.first_s[request] = records.last_s[request] = row["first_token_s"]
                records.admitted_s[request] = start_s
            if request in self._retracted:
                self._retracted.remove(request)
                moved += int(row["context_tokens"])
            row["runs"] = True
            self.running.add_row(row)
            self.kv_tokens += int(row["context_tokens"])
        return moved

    def _release(self, now_s: float) -> None:
        """A step starts: when the first tokens held for it are seen. With look-ahead it was
        composed for a predicted start."""
        for request, ready_s, hold_s in self._held:
            first_s = max(ready_s, min(hold_s, now_s))
            self._records.first_s[request] = self._records.last_s[request] = first_s
            if request in self.running:
                self.running.row(request)["first_token_s"] = first_s
        self._held.clear()

    def _make_room(self, start_s: float) -> int:
        """Retract while the step could overflow KV; returns the tokens moved out."""
        order = self.policy.retention_order(
            self.running.rows, start_s, 2.0 * self._reload_s_per_token
        )
        leaving = self.running.rows["id"][order].tolist()
        moved = 0
        while len(leaving) > 1 and self.kv_tokens + len(leaving) > self._limits.kv_tokens:
            row = self.running.remove(leaving.pop())
            self.kv_tokens -= int(row["context_tokens"])
            moved += int(row["context_tokens"])
            self.waiting.add_row(row)
            self._retracted.add(int(row["id"]))
            self.retractions += 1
        return moved
