"""What the data-parallel attention ranks of a decode server run in each step.

Every rank decides alone, but a step lasts as long as that of the slowest rank. Upstream gathers the
batch size and the context of all ranks before every step, so no collective is added here.
"""

from collections.abc import Sequence

from sglang.srt.kairos.decode.device_times import StepLoad

from kairos.latency.decode import DecodeModel
from kairos.latency.ranks import LockStep, RankLoad
from kairos.latency.table import StepTable

# Steps whose results are still to come: one runs, and one is prepared.
_KEPT_STEPS = 4


class DecodeRanks:
    """The batches of all ranks.

    Args:
        prior: step times of one rank whose peers are idle.
        model: gives the part of a step that the ranks share.
        ranks: number of ranks.
        rank: index of this one.
    """

    def __init__(self, prior: StepTable, model: DecodeModel, ranks: int, rank: int) -> None:
        self._lock_step = LockStep(prior, model, ranks)
        self._table = prior
        self._rank = rank
        self._newest: tuple[RankLoad, ...] = ()
        self._steps: dict[int, tuple[RankLoad, ...]] = {}
        self._slowest = 0  # steps of which this rank was the slowest
        self._observed = 0

    def gathered(self, step: int, requests: Sequence[int], contexts: Sequence[int]) -> None:
        """Take the numbers that upstream has gathered for a step.

        Args:
            step: `forward_iter` of the batch, if one is launched.
            requests: by rank.
            contexts: sum of their contexts by rank, tokens.
        """
        # The longest context is not gathered. All ranks must learn the same, this one included.
        self._newest = tuple(
            RankLoad(batch, context, context / max(batch, 1))
            for batch, context in zip(requests, contexts, strict=True)
        )
        self._steps[step] = self._newest
        if len(self._steps) > _KEPT_STEPS:
            del self._steps[min(self._steps)]

    def beside(self, table: StepTable) -> StepTable:
        """Return step times of this rank while the others run what they ran in the newest step.

        Args:
            table: step times of one rank whose peers are idle.
        """
        others = [load for rank, load in enumerate(self._newest) if rank != self._rank]
        return self._of(table).table_beside(others)

    def slowest(self, step: int, table: StepTable, seconds: float) -> tuple[StepLoad, float] | None:
        """Return the load that set the duration of a step, and its seconds without peers.

        It is the same on every rank, so that the ranks learn the same.

        Args:
            step: `forward_iter` of the batch.
            table: step times of one rank whose peers are idle.
            seconds: measured duration of the step.
        """
        loads = self._steps.get(step)
        if loads is None or not any(load.batch for load in loads):
            return None
        lock_step = self._of(table)
        attention = [lock_step.attention_s(load) for load in loads]
        slowest = attention.index(max(attention))
        self._observed += 1
        self._slowest += slowest == self._rank
        load = loads[slowest]
        total = sum(each.batch for each in loads)
        beside_s = lock_step.shared_s(total) - lock_step.shared_s(load.batch)
        return StepLoad(*load), seconds - beside_s

    def snapshot(self) -> dict[str, object]:
        """Return figures for /server_info. `slowest_share`: of the measured steps."""
        return {
            "rank": self._rank,
            "requests": [load.batch for load in self._newest],
            "context_tokens": [int(load.context_tokens) for load in self._newest],
            "slowest_share": round(self._slowest / max(self._observed, 1), 4),
        }

    def _of(self, table: StepTable) -> LockStep:
        if table is not self._table:
            self._table, self._lock_step = table, self._lock_step.with_table(table)
        return self._lock_step
