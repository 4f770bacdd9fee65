"""The order in which a decode server keeps its requests when memory runs out."""

import numpy as np
from sglang.srt.kairos.decode.rows import DecodeRows
from sglang.srt.kairos.upstream import ScheduleBatch

from kairos.policy.slack import SlackPolicy


class RetractionOrder:
    """Ranks the running requests for upstream's retraction.

    Args:
        rows: the requests of the running batch.
        reload_s_per_token: cost of a retraction, seconds per token of context.
    """

    def __init__(self, policy: SlackPolicy, rows: DecodeRows, reload_s_per_token: float) -> None:
        self._policy = policy
        self._rows = rows
        self._reload_s_per_token = reload_s_per_token

    def rank(self, batch: ScheduleBatch, start_s: float) -> None:
        """Set the ranks of all requests if memory is too short for the next step.

        Where no request has a TPOT objective, the order is upstream's.

        Args:
            batch: the running batch, in the order of the rows.
            start_s: start of the next step, monotonic seconds.
        """
        allocator = batch.token_to_kv_pool_allocator
        needed = len(batch.reqs) * allocator.page_size
        free = allocator.available_size()
        if free >= needed or free + batch.tree_cache.evictable_size() >= needed:
            return
        if not np.isfinite(self._rows.rows["tpot_s"]).any():
            for req in batch.reqs:
                req.kairos.retraction_rank = None
            return
        order = self._policy.retention_order(self._rows.rows, start_s, self._reload_s_per_token)
        for rank, at in enumerate(order):
            batch.reqs[at].kairos.retraction_rank = rank
