"""A bounded share of engine time for requests that wait too long."""

from collections.abc import Callable

from sglang.srt.kairos.upstream import Req, SchedulePolicy

from kairos.policy.urgency import UrgencyParams

# As `UrgencyParams.starvation_share`, but larger: upstream computes a started prompt to its end, so
# the share is spent a whole prompt at a time.
STARVATION_SHARE = 0.02
_STARVATION_AFTER = UrgencyParams().starvation_after


class StarvationGrants:
    """Promotes the oldest starved request of a queue periodically.

    Attributes:
        count: requests that were promoted and taken.
    """

    def __init__(self, remaining_s: Callable[[Req], float]) -> None:
        """Begin with a grant at the first occasion.

        Args:
            remaining_s: predicts the engine time of a request, seconds.
        """
        self.count = 0
        self._remaining_s = remaining_s
        self._promoted: Req | None = None
        self._next_s = 0.0

    def grant(self, waiting: list[Req], policy: SchedulePolicy, now: float) -> None:
        """Put the oldest starved request first, if a grant is due.

        With priorities, only requests of the highest waiting priority are considered.
        """
        if now < self._next_s or not waiting:
            return
        highest = waiting[0].priority if policy.enable_priority_scheduling else None
        late = [
            req
            for req in waiting
            if (highest is None or req.priority == highest) and is_starved(req, now)
        ]
        if late:
            oldest = min(late, key=lambda r: (r.kairos.arrival_s, r.bootstrap_room or 0))
            waiting.remove(oldest)
            waiting.insert(0, oldest)
            self._promoted = oldest

    def account(self, waiting: list[Req], now: float) -> None:
        """Once the promoted request has been taken, set when its time is earned again."""
        if self._promoted is None or self._promoted in waiting:
            return
        self.count += 1
        self._next_s = now + self._remaining_s(self._promoted) / STARVATION_SHARE
        self._promoted = None


def is_starved(req: Req, now: float) -> bool:
    """Return whether a request has waited for `UrgencyParams.starvation_after` times its SLO."""
    return now - req.kairos.arrival_s > _STARVATION_AFTER * req.kairos.slo.ttft_s
