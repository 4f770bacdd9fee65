"""KV memory for prompts that are not started yet."""

from collections.abc import Iterable, Sequence

from sglang.srt.kairos.prefill.jobs import PrefillJobs
from sglang.srt.kairos.prefill.prompts import computed_tokens, total_tokens
from sglang.srt.kairos.prefill.starvation_grants import is_starved
from sglang.srt.kairos.shared_clock import SharedClock
from sglang.srt.kairos.upstream import PlanningScheduler, Req


class KvBudget:
    """Free memory less the need of started prompts.

    Upstream takes the memory of a continued prompt unasked and ends the process when there is none.
    """

    def __init__(
        self, scheduler: PlanningScheduler, started: Sequence[Req], reserved_for: Req | None = None
    ) -> None:
        """Count the memory that is free now.

        Args:
            scheduler: has the pool and the radix cache, whose unused prefixes count as free.
            started: prompts of which a part is computed.
            reserved_for: the next memory is for this prompt; the others get the rest.
        """
        self._page = scheduler.page_size
        self._reserved_for = reserved_for
        free = scheduler.token_to_kv_pool_allocator.available_size()
        self._left = free + scheduler.tree_cache.evictable_size() - self._page
        rests = (total_tokens(req) - computed_tokens(req) for req in started)
        self._left -= sum(in_pages(rest, self._page) for rest in rests)

    def take(self, req: Req, more: int = 0) -> bool:
        """Take the memory of a waiting prompt if it fits; return whether it does.

        Its cached prefix counts in full, because that can no longer be evicted for it.

        Args:
            req: the prompt.
            more: tokens to be freed for it, beyond those that are left.
        """
        needed = in_pages(total_tokens(req), self._page)
        reserved = 0
        if self._reserved_for is not None and req is not self._reserved_for:
            reserved = in_pages(total_tokens(self._reserved_for), self._page)
        if needed + reserved > self._left + more:
            return False
        self._left -= needed
        if req is self._reserved_for:
            self._reserved_for = None
        return True


class KvReservation:
    """The waiting prompt that the next free memory is for.

    Without it, shorter prompts would take all memory that gets free for as long as they come.
    """

    def __init__(self, jobs: PrefillJobs, clock: SharedClock, scheduler: PlanningScheduler) -> None:
        """Begin without a reservation.

        Args:
            jobs: the prompts of the server.
            clock: the time of the decisions.
            scheduler: has the size of the pool.
        """
        self._jobs = jobs
        self._clock = clock
        self._page = scheduler.page_size
        self._max_tokens = scheduler.max_total_num_tokens - self._page
        self._number: int | None = None

    def reserved_for(self) -> Req | None:
        """Return the prompt, as long as it waits."""
        number = self._number
        if number is None or not self._jobs.waits(number):
            self._number = None
            return None
        return self._jobs[number]

    def reserve_for(self, unfitting: Iterable[Req]) -> None:
        """Reserve for the first of `unfitting` that starves and can fit an empty pool."""
        now = self._clock.now()
        self._number = next(
            (
                req.kairos.number
                for req in unfitting
                if is_starved(req, now)
                and in_pages(total_tokens(req), self._page) <= self._max_tokens
            ),
            None,
        )


def in_pages(tokens: int, page: int) -> int:
    """Return the tokens of the pages that `tokens` tokens take; `page` is the size of one."""
    return -(-tokens // page) * page
