"""Order of the prefill waiting queue."""

import time
from collections.abc import Iterable
from itertools import islice
from typing import Any

from kairos.latency import Profile

# Requests looked up in the radix cache per scheduling pass. A look-up walks the prompt, and a burst
# of long prompts must not stall the step loop; the rest wait for a later pass at full length.
MATCHES_PER_PASS = 32


class PrefillScheduler:
    """Feasible-first order by deadline, over the waiting queue of one upstream scheduler.

    A request is feasible while its predicted prefill time still ends before its TTFT deadline.
    Feasible requests go by deadline. The others, which miss their SLO whatever happens, follow
    with the shortest first, so that they cost the feasible ones as little as possible.
    """

    def __init__(self, profile: Profile) -> None:
        self._model = profile.prefill
        self._chunk_tokens = profile.limits.chunk_tokens
        self._passes = 0
        self._late = 0
        self._longest_s = 0.0

    def order(self, waiting: list[Any], policy: Any, now: float) -> None:
        """Sort upstream `Req`s in place. `policy` is the upstream `SchedulePolicy`: its radix cache
        is asked for cached prefixes, its priorities (if enabled) come before urgency. `now` is
        CLOCK_MONOTONIC, seconds."""
        if len(waiting) < 2:
            return
        begin = time.perf_counter()
        if not policy.waiting_queue_prefix_matched(waiting):
            match_prefixes(waiting, policy.tree_cache)
        self._late = self.sort(waiting, policy, now)
        self._passes += 1
        self._longest_s = max(self._longest_s, time.perf_counter() - begin)

    def sort(self, requests: list[Any], policy: Any, now: float) -> int:
        """Sort upstream `Req`s in place by what is known of them; how many are late."""
        sign = policy.priority_sign if policy.enable_priority_scheduling else 0
        keys = {req.rid: (sign * (req.priority or 0), *self._key(req, now)) for req in requests}
        requests.sort(key=lambda req: keys[req.rid])
        return sum(late for _, late, *_ in keys.values())

    def remaining_s(self, req: Any) -> float:
        """Predicted engine time that the rest of the prompt takes, seconds."""
        total = len(req.origin_input_ids) + len(req.output_ids)
        cached = min(req.num_matched_prefix_tokens or 0, total - 1)
        return self._model.remaining_s(cached, total, self._chunk_tokens)

    def snapshot(self) -> dict[str, float]:
        """Counters for /server_info."""
        return {
            "ordered_passes": self._passes,
            "late_in_last_pass": self._late,
            "longest_pass_ms": round(self._longest_s * 1e3, 3),
        }

    def _key(self, req: Any, now: float) -> tuple[bool, float, int]:
        remaining = self.remaining_s(req)
        deadline = req.kairos.ttft_deadline_s
        late = now + self._model.fixed_s + remaining > deadline
        # Rooms are the same on both servers of a pair; rids need not be.
        return late, remaining if late else deadline, req.bootstrap_room or 0


def match_prefixes(waiting: Iterable[Any], tree_cache: Any) -> list[Any]:
    """Look waiting requests up in the radix cache, each once, `MATCHES_PER_PASS` at most; returns
    those that were looked up."""
    # Here, because importing it takes seconds and needs a platform; a scheduler has it loaded.
    from sglang.srt.mem_cache.common import match_kv_cache

    new = list(islice((req for req in waiting if not req.kairos.matched), MATCHES_PER_PASS))
    for req in new:
        match_kv_cache(req, tree_cache)
        req.kairos.matched = True
    return new
