"""Cached prefixes of waiting prompts."""

from collections.abc import Iterable, Sequence
from itertools import islice

from sglang.srt.kairos.upstream import BasePrefixCache, Req

# Requests looked up in the radix cache per scheduling pass. A look-up walks the prompt, and a burst
# of long prompts must not stall the step loop; the rest count in full until a later pass.
MATCHES_PER_PASS = 32

# Requests per pass, the newest ones, that are compared with the prompts that were just computed.
MAX_RECHECKED = 128
# Tokens behind the cached prefix in which both must agree.
COMPARED_TOKENS = 16


def match_prefixes(waiting: Iterable[Req], tree_cache: BasePrefixCache) -> list[Req]:
    """Look waiting requests up in the radix cache, each once until `forget_matches`.

    Args:
        waiting: at most `MATCHES_PER_PASS` of them are looked up.
        tree_cache: the radix cache.

    Returns:
        the requests that were looked up.
    """
    # Here, because importing it takes seconds and needs a platform; a scheduler has it loaded.
    from sglang.srt.mem_cache.common import match_kv_cache

    new = list(islice((req for req in waiting if not req.kairos.matched), MATCHES_PER_PASS))
    for req in new:
        match_kv_cache(req, tree_cache)
        req.kairos.matched = True
    return new


def forget_matches(waiting: Sequence[Req], computed: Sequence[Req]) -> list[Req]:
    """Mark requests to be looked up again because a computed prompt begins like theirs.

    Otherwise the prompts of a burst with one prefix would count in full, and miss their deadlines.

    Args:
        waiting: the scheduler's queue.
        computed: prompts of the batches whose results have arrived since the last pass.

    Returns:
        the marked requests.
    """
    if not computed:
        return []
    forgotten = []
    # By length of a cached prefix: the tokens that follow it in the computed prompts.
    ahead: dict[int, set[tuple[int, ...]]] = {}
    for req in waiting[-MAX_RECHECKED:]:
        at = req.num_matched_prefix_tokens or 0
        end = at + COMPARED_TOKENS
        if at not in ahead:
            ahead[at] = {tuple(one.origin_input_ids[at:end]) for one in computed}
        if req.kairos.matched and tuple(req.origin_input_ids[at:end]) in ahead[at]:
            req.kairos.matched = False
            forgotten.append(req)
    return forgotten
