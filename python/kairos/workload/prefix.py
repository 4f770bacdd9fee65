"""The expected prefix hit of each prompt."""

from collections import OrderedDict
from collections.abc import Sequence

from kairos.workload.trace import BLOCK_TOKENS, TraceRequest

CACHE_TOKENS = 4_000_000
"""Capacity of the modelled prefix cache, tokens; part of the definition of load."""


def expected_cached_tokens(
    requests: Sequence[TraceRequest], capacity_tokens: int = CACHE_TOKENS
) -> list[int]:
    """Tokens of each prompt that an initially empty LRU cache holds when the request arrives.

    Only whole leading blocks count, and at least one token of a prompt is always computed. An id
    stands for its block and all blocks before it, so an id in the cache is a prefix there too.

    Args:
        requests: in order of arrival.
        capacity_tokens: size of the cache.
    """
    cache: OrderedDict[int, None] = OrderedDict()
    capacity_blocks = capacity_tokens // BLOCK_TOKENS
    cached = []
    for request in requests:
        hits = 0
        for block in request.hash_ids:
            if block not in cache:
                break
            hits += 1
        # Leaves first, so that a block is never older than the blocks behind it.
        for block in reversed(request.hash_ids):
            cache[block] = None
            cache.move_to_end(block)
        while len(cache) > capacity_blocks:
            cache.popitem(last=False)
        cached.append(min(hits * BLOCK_TOKENS, request.input_tokens - 1))
    return cached
