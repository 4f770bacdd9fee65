"""What the data-parallel attention ranks of a prefill server compute in each batch.

All ranks end a batch together, so only the slowest one sees how long its own chunks take. Upstream
gathers the tokens and the attention work of all ranks before every batch.
"""

from collections.abc import Sequence

from kairos.latency import PrefillModel

# Batches whose results are still to come: one runs, and one is prepared.
_KEPT_BATCHES = 4
# Two ranks with this little between them are both the slowest.
_ALIKE = 0.98


class PrefillRanks:
    """The batches of all ranks.

    Args:
        rank: index of this one.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._batches: dict[int, tuple[tuple[int, int], ...]] = {}

    def gathered(self, iteration: int, tokens: Sequence[int], pairs: Sequence[int]) -> None:
        """Take the numbers that upstream has gathered for a batch.

        Args:
            iteration: `forward_iter` of the batch, if one is launched.
            tokens: new tokens, by rank.
            pairs: pairs of a query and a key that attention computes, by rank.
        """
        self._batches[iteration] = tuple(zip(tokens, pairs, strict=True))
        if len(self._batches) > _KEPT_BATCHES:
            del self._batches[min(self._batches)]

    def is_slowest(self, iteration: int, model: PrefillModel) -> bool:
        """Return whether this rank has set the duration of a batch; False where it is not known.

        Args:
            iteration: `forward_iter` of the batch.
            model: predicts the work of a rank.
        """
        batches = self._batches.get(iteration)
        if batches is None:
            return False
        work_s = [model.work_s(tokens, pairs) for tokens, pairs in batches]
        return work_s[self._rank] >= _ALIKE * max(work_s)
