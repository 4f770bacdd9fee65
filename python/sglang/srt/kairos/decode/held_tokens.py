"""First tokens that are held back until their decode slot is ready.

A transferred request has its first token already. Streaming that token starts the request's TPOT
clock, whether or not a step has room for it. While the token is held, the request waits on its
TTFT clock instead, and never beyond its TTFT deadline.
"""

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
from sglang.srt.kairos.request_state import AwaitedToken, StreamedToken
from sglang.srt.kairos.upstream import PrebuiltBatch, Req

from kairos.policy.residents import Rows

# Time from the decision to the client, through detokenizer and HTTP, seconds.
MARGIN_S = 0.005


class HeldTokens:
    """The first tokens that one decode server holds back.

    Attributes:
        count: tokens held now.
    """

    def __init__(self) -> None:
        self.count = 0
        self._due: list[Req] = []
        self._held_ever = 0
        self._at_deadline = 0

    def mark(self, reqs: Sequence[Req], now: float) -> None:
        """Mark which of the requests that are about to join are held.

        A request whose TTFT deadline has passed, one without a deadline, and one that is being
        aborted is not held.

        Args:
            reqs: requests whose KV has arrived.
            now: monotonic seconds.
        """
        for req in reqs:
            state = req.kairos
            if isinstance(state.first_token, AwaitedToken):
                waits = req.to_finish is None and now + MARGIN_S < state.ttft_deadline_s < math.inf
                state.first_token = AwaitedToken(held=waits)

    def process_prebuilt(
        self,
        original: Callable[[PrebuiltBatch], None],
        batch: PrebuiltBatch,
        now: float,
    ) -> None:
        """Process transferred requests as upstream does, without streaming held tokens.

        Around `SchedulerBatchResultProcessor.process_batch_result_prebuilt`.
        """
        self.mark(batch.reqs, now)
        if not any(req.kairos.is_held for req in batch.reqs):
            original(batch)
            return
        shown = []
        for req in batch.reqs:
            if req.kairos.is_held:
                req.update_finish_state()
                req.kairos.first_token = AwaitedToken(held=not req.finished())
            if req.kairos.is_held:
                req.time_stats.set_decode_prebuilt_finish_time()
            else:
                shown.append(req)
        if shown:
            part = copy.copy(batch)
            part.reqs = shown
            original(part)

    def follow(self, rows: Rows, reqs: Sequence[Req]) -> None:
        """Set the release deadlines of held requests in rows that were rebuilt.

        Args:
            rows: shape (requests,), dtype `ROW`.
            reqs: the requests of the rows.
        """
        self.count = 0
        for at, req in enumerate(reqs):
            if req.kairos.is_held:
                rows[at]["hold_until_s"] = req.kairos.ttft_deadline_s - MARGIN_S
                self.count += 1

    def defer_clocks(self, rows: Rows, now: float) -> None:
        """Start the TPOT clocks of held requests at `now`, before a selection.

        Their first tokens are not streamed yet, so they have not waited on that clock.
        """
        held = np.isfinite(rows["hold_until_s"])
        rows["first_token_s"][held] = np.minimum(now, rows["hold_until_s"][held])

    def release(
        self, rows: Rows, reqs: Sequence[Req], start_s: float, next_s: float, now: float
    ) -> list[Req]:
        """Release the tokens of requests that run in the selected step or must not wait longer.

        Args:
            rows: shape (requests,), dtype `ROW`; `runs` is selected.
            reqs: the requests of the rows.
            start_s: start of the selected step, monotonic seconds.
            next_s: start of the step after it.
            now: the current time.

        Returns:
            Requests whose first token is to be streamed now. The others that are released are
            returned by `take_due` when the step starts.
        """
        held = np.isfinite(rows["hold_until_s"])
        urgent = rows["hold_until_s"] <= next_s
        released: list[Req] = []
        for at in np.flatnonzero(held & (rows["runs"] | urgent)).tolist():
            later = start_s > now and not urgent[at]
            rows[at]["hold_until_s"] = -np.inf
            rows[at]["first_token_s"] = start_s if later else now
            reqs[at].kairos.first_token = StreamedToken(float(rows[at]["first_token_s"]))
            (self._due if later else released).append(reqs[at])
            self._at_deadline += not rows[at]["runs"]
            self._held_ever += 1
            self.count -= 1
        return released

    def take_due(self) -> list[Req]:
        """Return the requests whose first token is to be streamed when the selected step starts."""
        due, self._due = self._due, []
        return [req for req in due if req.finished_reason is None]

    def snapshot(self) -> dict[str, int]:
        """Return counters for /server_info."""
        return {
            "held": self.count,
            "held_ever": self._held_ever,
            "released_at_deadline": self._at_deadline,
        }
