"""A bounded share of service for requests that have waited too long."""

from collections.abc import Iterable

from kairos.router.placement.decode_target import DecodeTarget
from kairos.router.queue.demand import RequestDemand
from kairos.router.queue.params import DispatchParams

_CREDIT_S = 2.0


class Starvation:
    """A small share of service out of turn. Where a request needs much KV, a decode worker is
    reserved for it, because requests that need less would bypass it for ever.

    Attributes:
        reservation: (request id, key of the worker), or None.
    """

    def __init__(self) -> None:
        self.reservation: tuple[int, str] | None = None
        self._credit_s = 0.0

    @property
    def has_credit(self) -> bool:
        """Whether the next request that has waited too long may go."""
        return self._credit_s > 0.0

    def reserve(
        self,
        work: RequestDemand,
        decode: Iterable[DecodeTarget],
        now_s: float,
        params: DispatchParams,
    ) -> None:
        """`work` found too little KV: reserve the worker with the most free KV for it, if it has
        waited too long and there is no other reservation."""
        if self.reservation is not None or not _starves(work, now_s, params):
            return
        able = [d for d in decode if d.could_hold(work.input_tokens // work.sequences + 1)]
        if able:
            widest = max(able, key=lambda d: (d.free(d.fresh(now_s, params.stale_s)), d.key))
            self.reservation = (work.id, widest.key)

    def served(
        self, work: RequestDemand, work_s: float, now_s: float, params: DispatchParams
    ) -> None:
        """Every request that is sent earns them their share, and one of theirs pays for itself.

        Args:
            work_s: seconds of prefill, calibrated.
        """
        self._credit_s = min(self._credit_s + params.starve_share * work_s, _CREDIT_S)
        if _starves(work, now_s, params):
            self._credit_s = max(self._credit_s - work_s, -_CREDIT_S)

    def left(self, id: int) -> None:
        """A request does not wait any more."""
        if self.reservation is not None and self.reservation[0] == id:
            self.reservation = None

    def closed(self, key: str) -> None:
        """An instance takes nothing any more."""
        if self.reservation is not None and self.reservation[1] == key:
            self.reservation = None


def _starves(work: RequestDemand, now_s: float, params: DispatchParams) -> bool:
    return now_s - work.arrival_s > params.starve_after * work.slo.ttft_s
