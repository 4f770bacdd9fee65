"""The probable content of a worker's prefix cache."""

from collections import OrderedDict
from collections.abc import Sequence


class PrefixIndex:
    """Hashes of prompt blocks, the least recently used at the front.

    A hash covers its block and all before it, so the set of hashes is a radix tree, and the longest
    known prefix is found by bisection. A block's ancestors are always younger than itself, so
    eviction takes leaves first.

    Args:
        limit: blocks at most; 0 remembers nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def match(self, blocks: Sequence[int]) -> int:
        """Return the number of leading blocks that are known. O(log(blocks))."""
        low, high = 0, len(blocks)
        while low < high:
            middle = (low + high + 1) // 2
            if blocks[middle - 1] in self._blocks:
                low = middle
            else:
                high = middle - 1
        return low

    def insert(self, blocks: Sequence[int]) -> None:
        """Note blocks that are in the cache now, or will be soon. O(blocks)."""
        known = self._blocks
        for block in reversed(blocks[: self.limit]):
            known[block] = None
            known.move_to_end(block)
        while len(known) > self.limit:
            known.popitem(last=False)

    def clear(self) -> None:
        self._blocks.clear()
