"""A bounded share of service for requests that have waited too long."""

import math


class StarvationCredit:
    """Counts the service that starved requests may take out of turn.

    All service earns `share` of its amount. A starved request may be served while the balance is
    positive, and its own service is deducted: it may overdraw the balance once. Promoting starved
    requests without such a bound destroys attainment in overload.

    Args:
        share: part of all service, 0 to 1; 0 disables.
        limit: largest balance. It bounds a burst of starved requests after a quiet time.
        floor: smallest balance. It bounds the pause after a request that cost very much.
        balance: service that is available at the beginning.

    Attributes:
        balance: service that is available, in the unit of the amounts.
    """

    def __init__(
        self,
        share: float,
        limit: float = math.inf,
        floor: float = -math.inf,
        balance: float = 0.0,
    ) -> None:
        self.share = share
        self.limit = limit
        self.balance = balance
        self._floor = floor
        self._earned_until_s: float | None = None

    @property
    def available(self) -> bool:
        """Whether a starved request may be served."""
        return self.balance > 0.0

    def earn(self, amount: float) -> None:
        """Add the share of `amount` that was served."""
        self.balance = min(self.balance + self.share * amount, self.limit)

    def earn_until(self, now_s: float) -> None:
        """Add the share of the time since the last call, where the unit is seconds."""
        if self._earned_until_s is not None:
            self.earn(max(now_s - self._earned_until_s, 0.0))
        self._earned_until_s = now_s

    def spend(self, amount: float) -> None:
        """Deduct `amount` that was served out of turn."""
        self.balance = max(self.balance - amount, self._floor)
