"""KV memory for prompts that are not started yet."""

from collections.abc import Sequence
from typing import Any

from sglang.srt.kairos.planned_batch import total_tokens


class KvBudget:
    """Memory that is left for prompts not started yet: what started ones still need is theirs.
    Upstream takes the memory of a continued prompt unasked, and dies when there is none.

    Args:
        reserved_for: the next memory is for this one, the others get what it leaves.
    """

    def __init__(
        self, scheduler: Any, started: Sequence[Any], reserved_for: Any | None = None
    ) -> None:
        self._page = scheduler.page_size
        self._reserved_for = reserved_for
        free = scheduler.token_to_kv_pool_allocator.available_size()
        self._left = free + scheduler.tree_cache.evictable_size() - self._page
        rests = (total_tokens(req) - req.extend_end for req in started)
        self._left -= sum(pages(rest, self._page) for rest in rests)

    def take(self, req: Any, more: int = 0) -> bool:
        """Whether a waiting request fits into what is left and `more` tokens; its cached prefix
        counts, it can be evicted no more."""
        needed = pages(total_tokens(req), self._page)
        kept = 0
        if self._reserved_for is not None and req is not self._reserved_for:
            kept = pages(total_tokens(self._reserved_for), self._page)
        if needed + kept > self._left + more:
            return False
        self._left -= needed
        if req is self._reserved_for:
            self._reserved_for = None
        return True


def pages(tokens: int, page: int) -> int:
    """Tokens of the pages that so many tokens take."""
    return -(-tokens // page) * page
