"""Order of the prefill waiting queue."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

from sglang.srt.kairos.planned_batch import cached_tokens, total_tokens
from sglang.srt.kairos.request_slo import RequestSlo

from kairos.latency import Profile
from kairos.policy.urgency import UrgencyParams

# Requests looked up in the radix cache per scheduling pass. A look-up walks the prompt, and a burst
# of long prompts must not stall the step loop; the rest wait for a later pass at full length.
MATCHES_PER_PASS = 32

# Requests per pass, the newest, of which it is checked whether a prompt that was just computed made
# their cached prefix longer, by this many tokens that follow it.
RECHECKED, AHEAD = 128, 16

# Of engine time, for those that have waited too long; as `UrgencyParams.starvation_share`, but
# larger: upstream serves a prompt that it has started to its end, so a share is spent a prompt at
# a time.
STARVE_SHARE = 0.02
_STARVE_AFTER = UrgencyParams().starvation_after


class PrefillScheduler:
    """Feasible-first order by deadline, over the waiting queue of one upstream scheduler.

    A request is feasible while its predicted prefill time still ends before its TTFT deadline.
    Feasible requests go by deadline. The others, which miss their SLO whatever happens, follow
    with the shortest first, so that they cost the feasible ones as little as possible. Of those
    that have waited for many times their SLO the oldest goes first now and then.
    """

    def __init__(self, profile: Profile) -> None:
        self._model = profile.prefill
        self._chunk_tokens = profile.limits.chunk_tokens
        self._passes = 0
        self._late = 0
        self._longest_s = 0.0
        self._grants = StarvationGrants(self.remaining_s)
        self._handshake_grants = StarvationGrants(self.remaining_s)

    def order(self, waiting: list[Any], policy: Any, now: float) -> None:
        """Sort upstream `Req`s in place. `policy` is the upstream `SchedulePolicy`: its radix cache
        is asked for cached prefixes, its priorities (if enabled) come before urgency. `now` is
        CLOCK_MONOTONIC, seconds."""
        self._grants.account(waiting, now)
        if len(waiting) < 2:
            return
        begin = time.perf_counter()
        if not policy.waiting_queue_prefix_matched(waiting):
            match_prefixes(waiting, policy.tree_cache)
        self._late = self.sort(waiting, policy, now)
        self._grants.grant(waiting, policy, now)
        self._passes += 1
        self._longest_s = max(self._longest_s, time.perf_counter() - begin)

    def order_handshakes(self, queue: list[Any], policy: Any, now: float) -> None:
        """Sort upstream `Req`s that wait for their handshake, and for a buffer, in place."""
        self._handshake_grants.account(queue, now)
        self.sort(queue, policy, now)
        self._handshake_grants.grant(queue, policy, now)

    def sort(self, requests: list[Any], policy: Any, now: float) -> int:
        """Sort upstream `Req`s in place by what is known of them; how many are late."""
        sign = policy.priority_sign if policy.enable_priority_scheduling else 0
        keys = {req.rid: (sign * (req.priority or 0), *self._key(req, now)) for req in requests}
        requests.sort(key=lambda req: keys[req.rid])
        return sum(late for _, late, *_ in keys.values())

    def remaining_s(self, req: Any) -> float:
        """Predicted engine time that the rest of the prompt takes, seconds."""
        return self._model.remaining_s(cached_tokens(req), total_tokens(req), self._chunk_tokens)

    def snapshot(self) -> dict[str, float]:
        """Counters for /server_info."""
        return {
            "ordered_passes": self._passes,
            "late_in_last_pass": self._late,
            "starvation_grants": self._grants.count + self._handshake_grants.count,
            "longest_pass_ms": round(self._longest_s * 1e3, 3),
        }

    def _key(self, req: Any, now: float) -> tuple[bool, float, int]:
        remaining = self.remaining_s(req)
        # Whoever streams already was retracted, without disaggregation, and comes back first.
        deadline = -math.inf if req.output_ids else req.kairos.ttft_deadline_s
        late = not req.output_ids and now + self._model.fixed_s + remaining > deadline
        # Rooms are the same on both servers of a pair; rids need not be.
        return late, remaining if late else deadline, req.bootstrap_room or 0


class StarvationGrants:
    """Now and then lets the oldest starved request of a queue go first.

    Args:
        remaining_s: predicted engine time of a request, seconds.

    Attributes:
        count: requests that went first.
    """

    def __init__(self, remaining_s: Callable[[Any], float]) -> None:
        self.count = 0
        self._remaining_s = remaining_s
        self._oldest: Any = None  # that was put first
        self._next_s = 0.0

    def grant(self, waiting: list[Any], policy: Any, now: float) -> None:
        """Put the oldest starved request first, if it is its turn. With priorities only among those
        of the highest one that waits."""
        if now < self._next_s or not waiting:
            return
        highest = waiting[0].priority if policy.enable_priority_scheduling else None
        late = [
            req
            for req in waiting
            if (highest is None or req.priority == highest) and starved(req, now)
        ]
        if late:
            self._oldest = min(late, key=lambda r: (r.kairos.arrival_s, r.bootstrap_room or 0))
            waiting.remove(self._oldest)
            waiting.insert(0, self._oldest)

    def account(self, waiting: list[Any], now: float) -> None:
        """Once a granted request has been taken, its time is earned before the next one's turn."""
        if self._oldest is None or self._oldest in waiting:
            return
        self.count += 1
        self._next_s = now + self._remaining_s(self._oldest) / STARVE_SHARE
        self._oldest = None


def starved(req: Any, now: float) -> bool:
    """Whether a request has waited for so many times its SLO that a share of the time is its."""
    request: RequestSlo = req.kairos
    return now - request.arrival_s > _STARVE_AFTER * request.slo.ttft_s


def forget_matches(waiting: Sequence[Any], computed: Sequence[Any]) -> list[Any]:
    """Waiting requests to look up again, as they go on like one of `computed`: of a burst with one
    prefix, those behind the first would count in full, and be given up."""
    if not computed:
        return []
    forgotten = []
    ahead: dict[int, set[tuple[int, ...]]] = {}  # what the computed ones have after so many tokens
    for req in waiting[-RECHECKED:]:
        at = req.num_matched_prefix_tokens or 0
        if at not in ahead:
            ahead[at] = {tuple(one.origin_input_ids[at : at + AHEAD]) for one in computed}
        if req.kairos.matched and tuple(req.origin_input_ids[at : at + AHEAD]) in ahead[at]:
            req.kairos.matched = False
            forgotten.append(req)
    return forgotten


def match_prefixes(waiting: Iterable[Any], tree_cache: Any) -> list[Any]:
    """Look waiting requests up in the radix cache, once until `forget_matches`, `MATCHES_PER_PASS`
    at most; returns those that were looked up."""
    # Here, because importing it takes seconds and needs a platform; a scheduler has it loaded.
    from sglang.srt.mem_cache.common import match_kv_cache

    new = list(islice((req for req in waiting if not req.kairos.matched), MATCHES_PER_PASS))
    for req in new:
        match_kv_cache(req, tree_cache)
        req.kairos.matched = True
    return new
