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

    Attributes:
        balance: service that is available, in the unit of the amounts.
    """

    def __init__(self, share: float, limit: float = math.inf) -> None:
        self.share = share
        self.limit = limit
        self.balance = 0.0

    @property
    def available(self) -> bool:
        """Whether a starved request may be served."""
        return self.balance > 0.0

    def earn(self, amount: float) -> None:
        """Add the share of `amount` that was served."""
        self.balance = min(self.balance + self.share * amount, self.limit)

    def spend(self, amount: float) -> None:
        """Deduct `amount` that was served out of turn."""
        self.balance -= amount
