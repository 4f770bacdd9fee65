"""Requests that were at a worker when it died."""

from collections import OrderedDict

from kairos.router.edge.errors import RequestError, invalid

QUARANTINE_S = 600.0
_MAX_DIGESTS = 4096


class Quarantine:
    """Counts the deaths of workers by request, so that no request ends a fleet.

    A request is known by the digest of its body. The digests are bounded; the oldest are forgotten
    first.
    """

    def __init__(self) -> None:
        self._deaths: OrderedDict[int, tuple[int, float]] = OrderedDict()

    def died(self, digest: int, now_s: float) -> int:
        """Note that a worker died with this request; how many did within `QUARANTINE_S`."""
        count, until_s = self._deaths.pop(digest, (0, 0.0))
        count = count + 1 if now_s < until_s else 1
        self._deaths[digest] = count, now_s + QUARANTINE_S
        if len(self._deaths) > _MAX_DIGESTS:
            self._deaths.popitem(last=False)
        return count

    def check(self, digest: int, now_s: float) -> None:
        """Refuse a request with which two workers died.

        Raises:
            RequestError: 400, with the time after which it is taken again.
        """
        count, until_s = self._deaths.get(digest, (0, 0.0))
        if count < 2 or now_s >= until_s:
            return
        text = (
            f"two servers died with this very request; it is refused for {until_s - now_s:.0f} s "
            "more. Report it to the operator, or change it."
        )
        refused: RequestError = invalid(400, "request_quarantined", text)
        refused.retry_after_s = until_s - now_s
        raise refused
