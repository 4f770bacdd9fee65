"""First tokens held back until their decode slot is ready.

A transferred request has its first token. Streaming it starts the clock of its time per output
token, whether or not a step has room for it. Held back, it waits on the clock of the time to first
token instead, and never beyond that objective.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kairos.policy.residents import Rows

# Between the decision and the client: detokenizer and HTTP, seconds.
MARGIN_S = 0.005


class HeldTokens:
    """The first tokens that one decode server holds back.

    Attributes:
        count: how many now.
    """

    def __init__(self) -> None:
        self.count = 0
        self._due: list[Any] = []
        self._held_ever = 0
        self._at_deadline = 0

    def mark(self, reqs: Sequence[Any], now: float) -> None:
        """Hold the first tokens of requests that are about to join, unless they are late."""
        for req in reqs:
            request = req.kairos
            fresh = request.first_token_s is None and req.to_finish is None
            request.held = fresh and now + MARGIN_S < request.ttft_deadline_s

    def joined(self, rows: Rows, reqs: Sequence[Any], now: float) -> None:
        """Rows were rebuilt: those of held requests start their clock when released."""
        self.count = 0
        for at, req in enumerate(reqs):
            if req.kairos.held:
                rows[at]["hold_until_s"] = req.kairos.ttft_deadline_s - MARGIN_S
                self.count += 1

    def tick(self, rows: Rows, now: float) -> None:
        """Before a selection at `now`: nobody has waited yet for what is still held."""
        held = np.isfinite(rows["hold_until_s"])
        rows["first_token_s"][held] = np.minimum(now, rows["hold_until_s"][held])

    def release(
        self, rows: Rows, reqs: Sequence[Any], start_s: float, next_s: float, now: float
    ) -> list[Any]:
        """Requests whose first token is to be streamed now: they run in the step that was selected,
        or must not wait for the one after it. Where the step starts later than now, those that run
        in it follow at its start, see `begun`.

        Args:
            start_s, next_s: start of the step, and of the one after it.
        """
        held = np.isfinite(rows["hold_until_s"])
        urgent = rows["hold_until_s"] <= next_s
        released: list[Any] = []
        for at in np.flatnonzero(held & (rows["runs"] | urgent)).tolist():
            later = start_s > now and not urgent[at]
            rows[at]["hold_until_s"] = -np.inf
            rows[at]["first_token_s"] = start_s if later else now
            reqs[at].kairos.held = False
            reqs[at].kairos.first_token_s = float(rows[at]["first_token_s"])
            (self._due if later else released).append(reqs[at])
            self._at_deadline += not rows[at]["runs"]
            self._held_ever += 1
            self.count -= 1
        return released

    def begun(self) -> list[Any]:
        """Requests whose first token is to be streamed now that the selected step starts."""
        due, self._due = self._due, []
        return [req for req in due if req.finished_reason is None]

    def snapshot(self) -> dict[str, int]:
        """Counters for /server_info."""
        return {
            "held": self.count,
            "held_ever": self._held_ever,
            "released_at_deadline": self._at_deadline,
        }


def process_prebuilt(original: Callable[[Any, Any], None], processor: Any, batch: Any) -> None:
    """Around `SchedulerBatchResultProcessor.process_batch_result_prebuilt`: what upstream does to
    transferred requests, except that held ones are not streamed."""
    if not any(req.kairos.held for req in batch.reqs):
        original(processor, batch)
        return
    shown = []
    for req in batch.reqs:
        if req.kairos.held:
            req.update_finish_state()
            req.kairos.held = not req.finished()
        if req.kairos.held:
            req.time_stats.set_decode_prebuilt_finish_time()
        else:
            shown.append(req)
    if shown:
        part = copy.copy(batch)
        part.reqs = shown
        original(processor, part)
