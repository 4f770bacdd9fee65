"""A bounded share of engine time for requests that wait too long."""

from collections.abc import Callable

from sglang.srt.kairos.upstream import Req, SchedulePolicy

from kairos.policy.starvation import StarvationCredit
from kairos.policy.urgency import UrgencyParams

# As `UrgencyParams.starvation_share`, but larger: upstream computes a started prompt to its end, so
# the share is spent a whole prompt at a time.
STARVATION_SHARE = 0.02
# A quiet time earns one prompt, however long it is, and no burst of several.
_CREDIT_S = 1e-3
_URGENCY = UrgencyParams()


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
        self._credit = StarvationCredit(STARVATION_SHARE, limit=_CREDIT_S, balance=_CREDIT_S)

    def grant(self, waiting: list[Req], policy: SchedulePolicy, now: float) -> None:
        """Put the oldest starved request first, if the credit allows it.

        With priorities, only requests of the highest waiting priority are considered.
        """
        self._credit.earn_until(now)
        if not self._credit.available or not waiting:
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
        """Deduct the engine time of the promoted request once it has been taken."""
        if self._promoted is None or self._promoted in waiting:
            return
        self.count += 1
        self._credit.earn_until(now)
        self._credit.spend(self._remaining_s(self._promoted))
        self._promoted = None


def is_starved(req: Req, now: float) -> bool:
    """Return whether a request has waited for longer than `UrgencyParams.starved_after_s`."""
    return now - req.kairos.arrival_s > _URGENCY.starved_after_s(req.kairos.slo.ttft_s)
