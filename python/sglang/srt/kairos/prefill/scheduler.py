"""Order of the prefill waiting queue."""

import math
import time

from sglang.srt.kairos.prefill.prefix_matching import match_prefixes
from sglang.srt.kairos.prefill.prompts import cached_tokens, total_tokens
from sglang.srt.kairos.prefill.starvation_grants import StarvationGrants
from sglang.srt.kairos.upstream import Req, SchedulePolicy

from kairos.latency import Profile

# States of a request, in the order of service.
FEASIBLE, INFEASIBLE, BEST_EFFORT = 0, 1, 2


class PrefillScheduler:
    """Feasible-first order by deadline, over the waiting queue of one scheduler.

    A request is feasible while its predicted prefill time ends before its TTFT deadline. Feasible
    requests go by deadline. Infeasible requests follow, the shortest first, so that they cost the
    feasible ones as little as possible, and then best-effort requests by arrival. The oldest
    starved request is promoted periodically. Best-effort requests alone keep upstream's order.
    """

    def __init__(self, profile: Profile) -> None:
        """Begin with the latency model of `profile`."""
        self._model = profile.prefill
        self._chunk_tokens = profile.limits.chunk_tokens
        self._passes = 0
        self._infeasible = 0
        self._longest_s = 0.0
        self._grants = StarvationGrants(self.remaining_s)
        self._handshake_grants = StarvationGrants(self.remaining_s)

    def order(self, waiting: list[Req], policy: SchedulePolicy, now: float) -> None:
        """Sort waiting requests in place.

        Args:
            waiting: the scheduler's queue.
            policy: its radix cache is asked for cached prefixes; its priorities, if enabled, come
                before urgency.
            now: monotonic seconds.
        """
        self._grants.account(waiting, now)
        if len(waiting) < 2 or _only_best_effort(waiting):
            return
        begin = time.perf_counter()
        if not policy.waiting_queue_prefix_matched(waiting):
            match_prefixes(waiting, policy.tree_cache)
        self._infeasible = self.sort(waiting, policy, now)
        self._grants.grant(waiting, policy, now)
        self._passes += 1
        self._longest_s = max(self._longest_s, time.perf_counter() - begin)

    def order_handshakes(self, queue: list[Req], policy: SchedulePolicy, now: float) -> None:
        """Sort requests that wait for their handshake and for a metadata buffer, in place."""
        self._handshake_grants.account(queue, now)
        if _only_best_effort(queue):
            return
        self.sort(queue, policy, now)
        self._handshake_grants.grant(queue, policy, now)

    def sort(self, requests: list[Req], policy: SchedulePolicy, now: float) -> int:
        """Sort requests in place; return how many are infeasible."""
        sign = policy.priority_sign if policy.enable_priority_scheduling else 0
        keys = {req.rid: (sign * (req.priority or 0), *self._key(req, now)) for req in requests}
        requests.sort(key=lambda req: keys[req.rid])
        return sum(state == INFEASIBLE for _, state, *_ in keys.values())

    def remaining_s(self, req: Req) -> float:
        """Predict the engine time of the rest of a prompt, seconds."""
        return self._model.remaining_s(cached_tokens(req), total_tokens(req), self._chunk_tokens)

    def snapshot(self) -> dict[str, float]:
        """Return the counters for /server_info."""
        return {
            "ordered_passes": self._passes,
            "infeasible_in_last_pass": self._infeasible,
            "starvation_grants": self._grants.count + self._handshake_grants.count,
            "longest_pass_ms": round(self._longest_s * 1e3, 3),
        }

    def _key(self, req: Req, now: float) -> tuple[int, float, int]:
        # Rooms are the same on both servers of a pair; rids need not be.
        room = req.bootstrap_room or 0
        if math.isinf(req.kairos.slo.ttft_s) and not req.output_ids:
            return BEST_EFFORT, req.kairos.arrival_s, room
        remaining = self.remaining_s(req)
        # A request with output was retracted, without disaggregation, and comes back first.
        deadline = -math.inf if req.output_ids else req.kairos.ttft_deadline_s
        infeasible = not req.output_ids and now + self._model.fixed_s + remaining > deadline
        return (INFEASIBLE, remaining, room) if infeasible else (FEASIBLE, deadline, room)


def _only_best_effort(requests: list[Req]) -> bool:
    return all(math.isinf(req.kairos.slo.ttft_s) for req in requests)
