"""When decode goes before prefill, on a server that does both."""

import math
from typing import Any


class DecodeTurns:
    """Upstream runs every prompt that waits before the next decode step. Here a step is due once
    the running requests have been without one for as long as the tightest TPOT SLO among them, and
    goes between two prefill batches.

    Args:
        overlap: batches are launched while the one before still runs.
    """

    def __init__(self, overlap: bool) -> None:
        self._overlap = overlap
        self._step_s = -math.inf  # end of the last decode step
        self._end_s = -math.inf  # and of the last batch
        self._prompt_s = 0.0  # what the last prefill batch took
        self._taken = 0

    def due(self, running_batch: Any, last_batch: Any, now: float) -> bool:
        """Whether the next batch shall be a decode step. `last_batch` was launched last; under the
        overlap schedule its result is still to come."""
        if running_batch.is_empty() or running_batch.is_prefill_only:
            return False
        if last_batch is not None and last_batch.forward_mode.is_decode():
            return False
        in_flight_s = self._prompt_s if self._overlap and last_batch is not None else 0.0
        tightest_s = min(req.kairos.slo.tpot_s for req in running_batch.reqs)
        if now + in_flight_s < self._step_s + tightest_s:
            return False
        self._taken += 1
        return True

    def measured(self, batch: Any, now: float) -> None:
        """The result of an upstream `ScheduleBatch` has been processed."""
        mode = batch.forward_mode
        if mode.is_mixed() or not mode.is_extend_without_speculative():
            self._step_s = now
        else:
            self._prompt_s = now - self._end_s if math.isfinite(self._end_s) else 0.0
        self._end_s = now

    def snapshot(self) -> dict[str, int]:
        """Counters for /server_info. taken: decode steps that went before a prompt."""
        return {"taken": self._taken}
