"""One simulated decode server: data-parallel ranks in lock step, or a single rank."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from kairos.latency.ranks import LockStep, RankLoad
from kairos.policy.rank_placement import place
from kairos.policy.residents import DecodeResident, Residents
from kairos.sim.decode_rank import DecodeRank, SelectedRows, waiting_requests
from kairos.sim.prefill_server import exact
from kairos.sim.records import Ints


class StepTiming(NamedTuple):
    """The durations of the steps of a simulated decode server.

    Attributes:
        true: true step times.
        predicted: step times as the policies predict them, without calibration.
        noise: factor of the next step's true time.
        lookahead: whether a step is composed when the one before it starts. A request that arrives
            during a step then waits for the step after the next one, and a request that has just
            finished runs once more without effect.
        change_cost_s: added to a step in which a resident is skipped or resumed, seconds.
    """

    true: LockStep
    predicted: LockStep
    noise: Callable[[], float] = exact
    lookahead: bool = True
    change_cost_s: float = 0.0


class SimulatedStep(NamedTuple):
    """A composed decode step.

    Attributes:
        batches: ids of the requests that run, by rank.
        predicted_s: duration that the policy predicts, seconds.
        true_s: duration that the step takes, seconds.
        idle_s: time that the ranks wait for the slowest one, seconds, added up.
    """

    batches: list[Ints]
    predicted_s: float
    true_s: float
    idle_s: float


class DecodeServer:
    """A decode server whose ranks begin every step together and wait for the slowest.

    Args:
        ranks: the ranks.
        timing: durations of steps.

    Attributes:
        ranks: as given.
        unplaced: requests that are bound to no rank.
        next_step: the step composed ahead.
        idle: whether no step runs.
        busy_s: seconds of all steps.
        barrier_idle_s: time that ranks waited for the slowest one, seconds, added up.
        wasted_rows: rows that ran once more after their request had finished.
    """

    def __init__(self, ranks: Sequence[DecodeRank], timing: StepTiming) -> None:
        self.ranks = ranks
        self.unplaced = Residents()
        self.next_step: SimulatedStep | None = None
        self.idle = True
        self.busy_s = 0.0
        self.barrier_idle_s = 0.0
        self.wasted_rows = 0
        self._timing = timing
        self._loads = [RankLoad()] * len(ranks)

    @property
    def bound_tokens(self) -> int:
        """Context tokens of all requests that are bound to the server."""
        unplaced = int(self.unplaced.rows["context_tokens"].sum()) if len(self.unplaced) else 0
        return unplaced + sum(rank.bound_tokens for rank in self.ranks)

    @property
    def retractions(self) -> int:
        """Requests that were moved out for lack of memory."""
        return sum(rank.retractions for rank in self.ranks)

    def receive(self, resident: DecodeResident, rank: int | None) -> None:
        """Take in a prompt whose KV has arrived.

        Args:
            resident: the request.
            rank: its rank; None: chosen when it can join.
        """
        (self.unplaced if rank is None else self.ranks[rank].waiting).add(resident)

    def start(self, now_s: float) -> SimulatedStep | None:
        """Run the next step from `now_s` on; returns it, or None without requests."""
        step = self.next_step or self._compose(now_s, now_s)
        self.next_step = None
        self.idle = step is None
        if step is None:
            return None
        for rank in self.ranks:
            rank.release_first_tokens(now_s)
        self.busy_s += step.true_s
        self.barrier_idle_s += step.idle_s
        if self._timing.lookahead:
            self.next_step = self._compose(now_s, now_s + step.predicted_s)
        return step

    def finish(self, step: SimulatedStep, now_s: float) -> int:
        """End the running step; returns how many requests have all their tokens now."""
        self.idle = True
        ended = 0
        for at, (rank, batch) in enumerate(zip(self.ranks, step.batches, strict=True)):
            rank.policy.observe(step.predicted_s, step.true_s)
            finished = rank.finish(batch, now_s)
            ended += len(finished)
            if len(finished) and self.next_step is not None:
                self.wasted_rows += int(np.isin(self.next_step.batches[at], finished).sum())
        return ended

    def _compose(self, now_s: float, start_s: float) -> SimulatedStep | None:
        """Have every rank select, and start the step that follows from all of them."""
        if len(self.unplaced):
            self._place(now_s)
        if len(self.ranks) > 1:
            self._predict_beside()
        selected = [rank.select(now_s, start_s) for rank in self.ranks]
        self._loads = [each.load for each in selected]
        if not any(load.batch for load in self._loads):
            return None
        predicted_s = self._predicted_s(selected)
        end_s = start_s + predicted_s
        launched = [
            rank.launch(each.before, end_s) for rank, each in zip(self.ranks, selected, strict=True)
        ]
        true = self._timing.true
        true_s = true.step_s(self._loads) * self._timing.noise()
        true_s += max(each.moved_s for each in selected)
        if any(changed for _, changed in launched):
            true_s += self._timing.change_cost_s
        attention_s = [true.attention_s(load) for load in self._loads]
        idle_s = len(attention_s) * max(attention_s) - sum(attention_s)
        return SimulatedStep([batch for batch, _ in launched], predicted_s, true_s, idle_s)

    def _place(self, now_s: float) -> None:
        """Bind the requests that can join now to ranks."""
        rows = self.unplaced.rows
        rows = rows[np.lexsort((rows["id"], rows["first_token_s"]))]
        waiting = waiting_requests(rows, now_s)
        running = [rank.running.rows["tpot_s"].min() for rank in self.ranks if len(rank.running)]
        tightest_s = float(min(running, default=math.inf))
        states = [rank.state() for rank in self.ranks]
        for at, rank in place(waiting, states, self._timing.predicted, tightest_s):
            self.ranks[rank].waiting.add_row(self.unplaced.remove(int(rows["id"][at])))

    def _predict_beside(self) -> None:
        """Have every rank predict steps in which the others run what they ran last.

        SGLang gathers the batches of all ranks before every step. A rank that selects knows those
        of the step before.
        """
        tables = self._timing.predicted.tables(self._loads)
        for rank, table in zip(self.ranks, tables, strict=True):
            rank.policy.table = table

    def _predicted_s(self, selected: Sequence[SelectedRows]) -> float:
        """Return the predicted seconds of a step, from the batches of this very step."""
        if len(self.ranks) == 1:
            return selected[0].predicted_s
        at = next(at for at, each in enumerate(selected) if each.load.batch)
        rank, others = self.ranks[at], [*self._loads[:at], *self._loads[at + 1 :]]
        rank.policy.table = self._timing.predicted.table_beside(others)
        return rank.policy.running_step_s(rank.running.rows)
