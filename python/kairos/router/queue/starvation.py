"""A bounded share of service for requests that have waited too long."""

import math
from collections.abc import Iterable

from kairos.policy.best_effort import STARVED_AFTER_S
from kairos.policy.starvation import StarvationCredit
from kairos.router.placement.decode_target import DecodeTarget
from kairos.router.queue.params import DispatchParams
from kairos.router.queue.request import RequestDemand

_CREDIT_S = 2.0


class Starvation:
    """A small share of service out of turn, and the reservation of a decode worker.

    A request that needs much KV gets a decode worker reserved, because requests that need less
    would bypass it for ever.

    Attributes:
        credit: seconds of prefill that starved requests may take.
        reservation: (request id, key of the worker), or None.
    """

    def __init__(self, params: DispatchParams) -> None:
        self.credit = StarvationCredit(params.starve_share, _CREDIT_S, -_CREDIT_S)
        self.reservation: tuple[int, str] | None = None
        self._after = params.starve_after

    def configure(self, params: DispatchParams) -> None:
        """Apply other parameters; the credit stays."""
        self.credit.share = params.starve_share
        self._after = params.starve_after

    def reserve(self, work: RequestDemand, decode: Iterable[DecodeTarget], now_s: float) -> None:
        """Reserve the worker with the most free KV for a starved request that found too little.

        At most one reservation exists at a time.
        """
        if self.reservation is not None or not self._starves(work, now_s):
            return
        able = [d for d in decode if d.could_hold(work.mean_prompt_tokens)]
        if able:
            widest = max(able, key=lambda d: (d.free(now_s), d.key))
            self.reservation = (work.id, widest.key)

    def served(self, work: RequestDemand, work_s: float, now_s: float) -> None:
        """Earn the share of a sent request's calibrated prefill; a starved one is deducted."""
        self.credit.earn(work_s)
        if self._starves(work, now_s):
            self.credit.spend(work_s)

    def left(self, id: int) -> None:
        """Drop the reservation of a request that does not wait any more."""
        if self.reservation is not None and self.reservation[0] == id:
            self.reservation = None

    def closed(self, key: str) -> None:
        """Drop the reservation of a worker that takes nothing any more."""
        if self.reservation is not None and self.reservation[1] == key:
            self.reservation = None

    def _starves(self, work: RequestDemand, now_s: float) -> bool:
        slo_s = work.slo.ttft_s
        after_s = self._after * slo_s if math.isfinite(slo_s) else STARVED_AFTER_S
        return now_s - work.arrival_s > after_s
