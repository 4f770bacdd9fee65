"""What the data-parallel attention ranks of a server run.

Every rank decides alone, but all of them end a batch together, with the slowest. Upstream gathers
the tokens and the attention work of all ranks before every batch, so no collective is added here.
"""

from collections.abc import Sequence
from typing import NamedTuple

# Batches whose results are still to come: one runs, and one is prepared.
_KEPT = 4


class RankBatch(NamedTuple):
    """The batch of one rank.

    Attributes:
        tokens: new ones; those of a decode step are its requests. 0 for an idle rank.
        pairs: of a query and a key that attention computes; in a decode step, the sum of the
            contexts.
    """

    tokens: int
    pairs: int


class RankBatches:
    """The newest batches of all ranks.

    Args:
        rank: index of this one.

    Attributes:
        rank: as given.
        newest: the batches that were gathered last, by rank; empty before the first gather.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.newest: tuple[RankBatch, ...] = ()
        self._by_iteration: dict[int, tuple[RankBatch, ...]] = {}

    def gathered(self, iteration: int, tokens: Sequence[int], pairs: Sequence[int]) -> None:
        """Take the numbers that upstream has gathered for a batch.

        Args:
            iteration: `forward_iter` of the batch, if one is launched.
            tokens: by rank, see `RankBatch`.
            pairs: by rank.
        """
        self.newest = tuple(map(RankBatch, tokens, pairs))
        self._by_iteration[iteration] = self.newest
        if len(self._by_iteration) > _KEPT:
            del self._by_iteration[min(self._by_iteration)]

    def of(self, iteration: int) -> tuple[RankBatch, ...]:
        """Return the batches of an iteration, by rank; empty where nothing is known of it."""
        return self._by_iteration.get(iteration, ())
