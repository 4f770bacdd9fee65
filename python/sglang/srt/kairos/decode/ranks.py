"""Step times of a decode server whose data-parallel attention ranks wait for the slowest one."""

from collections.abc import Iterable

from sglang.srt.kairos.decode.device_times import StepLoad
from sglang.srt.kairos.rank_batches import RankBatch, RankBatches

from kairos.latency.decode import DecodeModel
from kairos.latency.ranks import LockStep, RankLoad
from kairos.latency.table import StepTable


class DecodeRanks:
    """Predicts the steps of one rank beside the others, and tells which rank sets their duration.

    Args:
        prior: step times of one rank whose peers are idle.
        model: gives the part of a step that the ranks share.
        ranks: number of ranks.
        batches: what the ranks run.
    """

    def __init__(
        self, prior: StepTable, model: DecodeModel, ranks: int, batches: RankBatches
    ) -> None:
        self._lock_step = LockStep(prior, model, ranks)
        self._table = prior
        self._batches = batches
        self._slowest = 0  # steps of which this rank was the slowest
        self._observed = 0

    def beside(self, table: StepTable) -> StepTable:
        """Return step times of this rank while the others run what they ran in the newest step.

        Args:
            table: step times of one rank whose peers are idle.
        """
        newest, own = self._batches.newest, self._batches.rank
        return self._of(table).table_beside(self._loads((*newest[:own], *newest[own + 1 :])))

    def slowest(self, step: int, table: StepTable, seconds: float) -> tuple[StepLoad, float] | None:
        """Return the load that set the duration of a step, and its seconds without peers.

        It is the same on every rank, so that the ranks learn the same.

        Args:
            step: `forward_iter` of the batch.
            table: step times of one rank whose peers are idle.
            seconds: measured duration of the step.
        """
        loads = self._loads(self._batches.of(step))
        if not any(load.batch for load in loads):
            return None
        lock_step = self._of(table)
        attention = [lock_step.attention_s(load) for load in loads]
        slowest = attention.index(max(attention))
        self._observed += 1
        self._slowest += slowest == self._batches.rank
        load = loads[slowest]
        total = sum(each.batch for each in loads)
        beside_s = lock_step.shared_s(total) - lock_step.shared_s(load.batch)
        return StepLoad(*load), seconds - beside_s

    def snapshot(self) -> dict[str, object]:
        """Return figures for /server_info. `slowest_share`: of the measured steps."""
        return {
            "rank": self._batches.rank,
            "requests": [batch.tokens for batch in self._batches.newest],
            "context_tokens": [batch.pairs for batch in self._batches.newest],
            "slowest_share": round(self._slowest / max(self._observed, 1), 4),
        }

    def _loads(self, batches: Iterable[RankBatch]) -> list[RankLoad]:
        """Return batches as loads of decode steps.

        The longest context is not gathered. All ranks must learn the same, this one included, so
        the mean stands in for it. A rank that computes anything but a decode step counts as full.
        """
        most = len(self._table.seconds) - 1
        return [
            RankLoad(min(tokens, most), pairs, pairs / max(tokens, 1)) for tokens, pairs in batches
        ]

    def _of(self, table: StepTable) -> LockStep:
        if table is not self._table:
            self._table, self._lock_step = table, self._lock_step.with_table(table)
        return self._lock_step
