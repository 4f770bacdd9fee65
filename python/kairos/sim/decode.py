"""One simulated decode instance."""

from collections.abc import Callable

import numpy as np

from kairos.latency import Limits
from kairos.latency.table import StepTable
from kairos.policy.residents import Resident, Residents
from kairos.policy.slack import DecodePolicy
from kairos.sim import kernel
from kairos.sim.records import Records


class DecodeServer:
    """Args:
    policy: admission order and selection.
    table: true step times; `noise()` multiplies each.
    change_cost_s: added to a step in which a resident is parked or resumed.
    reload_s: seconds until a retracted request of so many tokens may be admitted again.
    """

    def __init__(
        self,
        policy: DecodePolicy,
        table: StepTable,
        limits: Limits,
        records: Records,
        noise: Callable[[], float],
        change_cost_s: float,
    ) -> None:
        self.policy = policy
        self.running = Residents()
        self.waiting = Residents()
        self.kv_tokens = 0
        self.reserved_tokens = 0
        self.busy_s = 0.0
        self.steps = 0
        self.retractions = 0
        self._table = table
        self._limits = limits
        self._records = records
        self._noise = noise
        self._change_cost_s = change_cost_s
        self._finished = np.empty(limits.max_batch, np.int64)
        self._predicted_s = 0.0
        self._step_s = 0.0
        self._stepping = False

    @property
    def idle(self) -> bool:
        return not self._stepping

    @property
    def load_tokens(self) -> int:
        """Context held, waited for and promised: what a router compares."""
        waiting = int(self.waiting.rows["context"].sum()) if len(self.waiting) else 0
        return self.kv_tokens + self.reserved_tokens + waiting

    def receive(self, resident: Resident) -> None:
        """A prompt's KV has arrived."""
        self.waiting.add(resident)

    def start(self, now_s: float) -> float | None:
        """Admit, select and launch a step; returns its end, None when nobody is here."""
        before = self.running.rows["runs"].copy()
        if len(self.waiting):
            self._admit(now_s)
        if not len(self.running):
            return None
        self._make_room()
        rows = self.running.rows
        self._predicted_s = self.policy.select(rows, now_s)
        step_s, running, changed = kernel.true_step(rows, before, len(before), self._table)
        self._step_s = step_s * self._noise()
        if changed:
            self._step_s += self._change_cost_s
        self.kv_tokens += running
        self.busy_s += self._step_s
        self.steps += 1
        self._stepping = True
        return now_s + self._step_s

    def finish(self, now_s: float) -> None:
        """The step ended."""
        self._stepping = False
        self.policy.observe(self._predicted_s, self._step_s)
        records = self._records
        rows = self.running.rows
        count = kernel.emit(rows, now_s, records.output_tokens, self._finished, records.stall_s)
        for request in self._finished[:count].tolist():
            row = self.running.remove(request)
            self.kv_tokens -= int(row["context"])
            self.policy.completed(int(row["group"]), int(row["tokens"]) + 1)
            records.last_s[request] = now_s
            records.first_s[request] = row["first"]

    def _admit(self, now_s: float) -> None:
        slots = self.policy.max_batch - len(self.running)
        waiting = self.waiting.rows
        admitted = self.policy.admit(waiting, now_s, self.kv_tokens, self._limits.kv_tokens, slots)
        for request in waiting["id"][admitted].tolist():
            row = self.waiting.remove(request)
            if row["tokens"] == 0:
                # The client sees a held first token when the decode slot is ready.
                row["first"] = max(row["first"], min(row["hold"], now_s))
                row["last"] = row["first"]
                self._records.admitted_s[request] = now_s
            row["runs"] = True
            self.running.add_row(row)
            self.kv_tokens += int(row["context"])

    def _make_room(self) -> None:
        """Retract the newest request while the next step could overflow KV."""
        while len(self.running) > 1 and (
            self.kv_tokens + len(self.running) > self._limits.kv_tokens
        ):
            rows = self.running.rows
            # Victims first: they have lost already. Then who arrived last.
            worst = np.lexsort((rows["id"], rows["first"], rows["victim"]))[-1]
            row = self.running.remove(int(rows["id"][worst]))
            self.kv_tokens -= int(row["context"])
            self.waiting.add_row(row)
            self.retractions += 1
