"""Steps of a decode server with data-parallel attention: all ranks wait for the slowest.

The ranks meet in the all-to-all of every layer. A step of N ranks takes

    shared(total batch) + max over ranks of attention(own batch, own context)

where the shared part is the fixed cost and the experts, and attention is the rest of
`DecodeModel.step_s`.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kairos.latency.decode import DecodeModel
from kairos.latency.table import Floats, StepTable


class RankLoad(NamedTuple):
    """The batch that one rank runs in a step.

    Attributes:
        batch: requests.
        context_tokens: sum of their contexts.
        longest_tokens: longest of their contexts.
    """

    batch: int = 0
    context_tokens: float = 0.0
    longest_tokens: float = 0.0


class LockStep:
    """Step times of ranks that begin and end every step together.

    Args:
        table: step times of one rank whose peers are idle.
        model: gives the part of a step that the ranks share.
        ranks: number of ranks.
        factor: multiplies the times of `model`, for a biased prediction.
    """

    def __init__(
        self, table: StepTable, model: DecodeModel, ranks: int, factor: float = 1.0
    ) -> None:
        self._table = table
        self._ranks = ranks
        self._rows = len(table.seconds)
        batches = range(ranks * (self._rows - 1) + 1)
        self._shared_s: Floats = factor * np.array([model.shared_s(batch) for batch in batches])

    def with_table(self, table: StepTable) -> "LockStep":
        """Return the same with other step times of one rank, of the same batch sizes."""
        made = copy.copy(self)
        made._table = table
        return made

    def shared_s(self, total_batch: int) -> float:
        """Return the part of a step that all ranks share, seconds."""
        return float(self._shared_s[min(total_batch, len(self._shared_s) - 1)])

    def attention_s(self, load: RankLoad) -> float:
        """Return the part of a step that a rank does not share, seconds; 0 for an idle rank."""
        if not load.batch:
            return 0.0
        return self._table.step_s(*load) - float(self._shared_s[load.batch])

    def step_s(self, loads: Sequence[RankLoad]) -> float:
        """Return the seconds of a step; 0 if no rank runs a request."""
        total = sum(load.batch for load in loads)
        if not total:
            return 0.0
        if self._ranks == 1:
            return self._table.step_s(*loads[0])
        return float(self._shared_s[total]) + max(self.attention_s(load) for load in loads)

    def table_beside(self, others: Sequence[RankLoad]) -> StepTable:
        """Return the step times of one rank while the other ranks run `others`.

        Args:
            others: batches of the other ranks. A scheduler knows those of the step before.

        Returns:
            A table of which a look-up equals `step_s` of the rank's batch and `others`.
        """
        if not others:
            return self._table
        slowest_s = max(self.attention_s(load) for load in others)
        return self._beside(sum(load.batch for load in others), slowest_s)

    def tables(self, loads: Sequence[RankLoad]) -> list[StepTable]:
        """Return `table_beside` of every rank while the ranks run `loads`."""
        if self._ranks == 1:
            return [self._table]
        total = sum(load.batch for load in loads)
        attention_s = [self.attention_s(load) for load in loads]
        return [
            self._beside(total - load.batch, max(attention_s[:at] + attention_s[at + 1 :]))
            for at, load in enumerate(loads)
        ]

    def _beside(self, batch: int, slowest_s: float) -> StepTable:
        """Return the table of a rank beside ranks with `batch` requests in all."""
        shared_s = self._shared_s[batch : batch + self._rows]
        more_s = shared_s - self._shared_s[: self._rows]
        seconds = self._table.seconds + more_s[:, None]
        return self._table._replace(seconds=seconds, floor_s=slowest_s + shared_s)
