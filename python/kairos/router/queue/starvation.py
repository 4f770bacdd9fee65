"""What requests get that have waited for too long."""

from collections.abc import Iterable

from kairos.router.placement.decode_target import DecodeTarget
from kairos.router.queue.demand import RequestDemand
from kairos.router.queue.params import DispatchParams

_CREDIT_S = 2.0


class Starvation:
    """A small share of what is served, out of turn; and where one needs much KV, the door: a decode
    instance that is held for it. Others that need less would pass it for ever.

    Attributes:
        door: (request, instance) or None.
    """

    def __init__(self) -> None:
        self.door: tuple[int, str] | None = None
        self._credit_s = 0.0

    @property
    def owed(self) -> bool:
        """Whether the next one that starves may go."""
        return self._credit_s > 0.0

    def hold_door(
        self,
        work: RequestDemand,
        decode: Iterable[DecodeTarget],
        now_s: float,
        params: DispatchParams,
    ) -> None:
        """`work` found too little KV: give it the roomiest instance, if it starves and no other one
        has a door."""
        if self.door is not None or not _starves(work, now_s, params):
            return
        able = [d for d in decode if d.could_hold(work.input_tokens // work.sequences + 1)]
        if able:
            widest = max(able, key=lambda d: (d.free(d.fresh(now_s, params.stale_s)), d.key))
            self.door = (work.id, widest.key)

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
        if self.door is not None and self.door[0] == id:
            self.door = None

    def closed(self, key: str) -> None:
        """An instance takes nothing any more."""
        if self.door is not None and self.door[1] == key:
            self.door = None


def _starves(work: RequestDemand, now_s: float, params: DispatchParams) -> bool:
    return now_s - work.arrival_s > params.starve_after * work.slo.ttft_s
