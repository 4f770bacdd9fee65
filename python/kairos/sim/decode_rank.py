"""One data-parallel rank of a simulated decode server: its requests and its memory."""

from typing import Any, NamedTuple, Protocol

import numpy as np

from kairos.latency import InstanceLimits
from kairos.latency.ranks import RankLoad
from kairos.latency.table import StepTable
from kairos.policy.length import LengthEstimator
from kairos.policy.rank_placement import STEP_SHARE, RankState, WaitingRequest, joins_within
from kairos.policy.residents import Residents, Rows
from kairos.policy.slack import DecodePolicy
from kairos.sim import decode_kernel
from kairos.sim.baselines.decode import KV_SHARE, first_come
from kairos.sim.records import Flags, Ints, SimRecords


class RetractingDecodePolicy(DecodePolicy, Protocol):
    """A decode policy that also orders residents for retraction.

    Attributes:
        table: predicts step times; replaced before every step of several ranks.
    """

    table: StepTable

    def running_step_s(self, residents: Rows) -> float:
        """Return the predicted seconds of a step of the rows that are set to run."""

    def retention_order(
        self, residents: Rows, now_s: float, reload_s_per_token: float = 0.0
    ) -> list[int]:
        """Indices of the rows in the order in which they are to be kept when memory runs out."""


class DecodeEngine(NamedTuple):
    """How a simulated decode rank runs.

    Attributes:
        limits: memory and batch size of a rank.
        joins_in_order: whether requests join in the order of arrival, as on SGLang after
            preallocation, and not in the policy's order of admission.
        joins_within_step: whether a request waits while the step of the slowest rank would become
            longer than the TPOT objectives allow.
        sends_first_token: whether first tokens are sent from here, when a request is admitted.
        reload_s_per_token: time for which moving a retracted request out stops the steps, and again
            for moving it in, seconds per token of context.
    """

    limits: InstanceLimits
    joins_in_order: bool = False
    joins_within_step: bool = False
    sends_first_token: bool = False
    reload_s_per_token: float = 0.0


class SelectedRows(NamedTuple):
    """The selection of one rank for a step.

    Attributes:
        load: the rows that run.
        predicted_s: duration of the step that the policy predicts, seconds.
        moved_s: time for moving retracted requests out or in, seconds.
        before: `runs` of the rows in the step before; empty after a retraction.
    """

    load: RankLoad
    predicted_s: float
    moved_s: float
    before: Flags


class _HeldToken(NamedTuple):
    """First token of a request that was admitted to a step that has not started."""

    request: int
    ready_s: float
    hold_until_s: float


def load_of(rows: Rows) -> RankLoad:
    """Return the batch of all rows."""
    if not len(rows):
        return RankLoad()
    context = rows["context_tokens"]
    return RankLoad(len(rows), float(context.sum()), float(context.max()))


def waiting_requests(rows: Rows, now_s: float) -> list[WaitingRequest]:
    """Return rows as placement sees them."""
    return [
        WaitingRequest(int(row["context_tokens"]), row["tpot_s"], now_s - row["first_token_s"])
        for row in rows
    ]


class DecodeRank:
    """One rank that admits requests, selects those that run, and retracts.

    A server without data-parallel attention has one.

    Args:
        policy: order of admission, selection, and order of retraction.
        engine: how the rank runs.
        records: updated with every token.
        lengths: predicts outputs; None: unknown.

    Attributes:
        policy: as given.
        lengths: as given.
        running: admitted requests.
        waiting: requests whose KV has arrived, and retracted ones.
        kv_tokens: context tokens of `running`.
        reserved_tokens: memory reserved for prompts that have not arrived, tokens.
        reserved_requests: these prompts.
        queued_tokens: prompts that wait for memory, tokens.
        queued_requests: these prompts.
        retractions: requests moved out for lack of memory.
    """

    def __init__(
        self,
        policy: RetractingDecodePolicy,
        engine: DecodeEngine,
        records: SimRecords,
        lengths: LengthEstimator | None = None,
    ) -> None:
        self.policy = policy
        self.lengths = lengths
        self.running = Residents()
        self.waiting = Residents()
        self.kv_tokens = 0
        self.reserved_tokens = 0
        self.reserved_requests = 0
        self.queued_tokens = 0
        self.queued_requests = 0
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

    @property
    def bound_tokens(self) -> int:
        """Context tokens of all requests that are bound to the rank."""
        return self.load_tokens + self.queued_tokens

    @property
    def bound_requests(self) -> int:
        """Requests that are bound to the rank."""
        held = len(self.running) + len(self.waiting)
        return held + self.reserved_requests + self.queued_requests

    def state(self) -> RankState:
        """Return the rank as placement sees it."""
        rows = self.running.rows
        if len(self.waiting):
            rows = np.concatenate([rows, self.waiting.rows])
        remaining = np.zeros(len(rows))
        if self.lengths is not None:
            remaining = self.lengths.remaining(
                rows["length_group"], rows["output_tokens"], rows["max_new_tokens"]
            )
        free_tokens = KV_SHARE * self._engine.limits.kv_tokens - self.load_tokens
        return RankState(
            load_of(rows),
            free_tokens,
            self.policy.max_batch - len(rows),
            rows["context_tokens"].astype(np.float64),
            remaining,
        )

    def select(self, now_s: float, start_s: float) -> SelectedRows:
        """Admit, free memory and select for a step that starts at `start_s`.

        Args:
            now_s: when the step is composed, seconds.
            start_s: its predicted start, seconds.
        """
        before = self.running.rows["runs"].copy()
        moved_tokens = self._admit(now_s, start_s) if len(self.waiting) else 0
        if not len(self.running):
            return SelectedRows(RankLoad(), 0.0, 0.0, before)
        if self.kv_tokens + len(self.running) > self._engine.limits.kv_tokens:
            moved_tokens += self._retract(start_s)
            before = before[:0]
        rows = self.running.rows
        predicted_s = self.policy.select(rows, start_s)
        load = RankLoad(*decode_kernel.running_load(rows))
        moved_s = moved_tokens * self._engine.reload_s_per_token
        return SelectedRows(load, predicted_s, moved_s, before)

    def launch(self, before: Flags, end_s: float) -> tuple[Ints, bool]:
        """Start the selected rows.

        Args:
            before: see `SelectedRows`.
            end_s: predicted end of the step, seconds.

        Returns:
            Ids of the requests that run, and whether one has started or stopped running.
        """
        count, changed = decode_kernel.launch(self.running.rows, before, end_s, self._batch)
        self.kv_tokens += count
        return self._batch[:count].copy(), changed

    def finish(self, batch: Ints, now_s: float) -> Ints:
        """End a step; returns the ids of the requests that have all their tokens now."""
        count = decode_kernel.emit(batch, now_s, self._records, self._finished)
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
        return self._finished[:count]

    def _admit(self, now_s: float, start_s: float) -> int:
        """Admit waiting requests to the step; returns the tokens of retracted ones among them."""
        slots = self.policy.max_batch - len(self.running)
        waiting = self.waiting.rows
        capacity = self._engine.limits.kv_tokens
        if self._engine.joins_in_order:
            admitted = first_come(waiting, self.kv_tokens, capacity, slots)
        else:
            admitted = self.policy.admit(waiting, start_s, self.kv_tokens, capacity, slots)
        if self._engine.joins_within_step:
            admitted = admitted[self._joins_within_step(waiting[admitted], now_s)]
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

    def _joins_within_step(self, waiting: Rows, now_s: float) -> list[int]:
        """Return the indices of the rows that keep the step within the TPOT objectives."""
        running = self.running.rows
        tightest_s = min(each["tpot_s"].min() for each in (running, waiting) if len(each))
        return joins_within(
            waiting_requests(waiting, now_s),
            load_of(running),
            self.policy.table,
            STEP_SHARE * float(tightest_s),
        )

    def _plan_first_token(self, row: Any, now_s: float, start_s: float) -> None:
        """Set when the client gets the first token of an admitted request.

        A held first token is sent when the decode slot is ready, see `release_first_tokens`.
        """
        request, hold_until_s = int(row["id"]), float(row["hold_until_s"])
        ready_s = now_s if self._engine.sends_first_token else float(row["first_token_s"])
        self._held.append(_HeldToken(request, ready_s, hold_until_s))
        first_s = max(ready_s, min(hold_until_s, start_s))
        row["first_token_s"] = row["last_token_s"] = first_s
        self._records.first_s[request] = self._records.last_s[request] = first_s
        self._records.admitted_s[request] = start_s

    def release_first_tokens(self, now_s: float) -> None:
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
