"""Decode turns on a server that is not disaggregated: when a decode step precedes prefill."""

import math

from sglang.srt.kairos.upstream import ScheduleBatch


class DecodeTurns:
    """Lets running requests decode between prompts.

    Upstream runs every waiting prompt before the next decode step. Here a decode step is due, and
    goes between two prefill batches, once the running requests have been without one for as long
    as the tightest TPOT objective among them.

    Args:
        overlap: batches are launched while the previous one still runs.
    """

    def __init__(self, overlap: bool) -> None:
        self._overlap = overlap
        self._step_s = -math.inf  # end of the last decode step
        self._end_s = -math.inf  # end of the last batch
        self._prefill_s = 0.0  # duration of the last prefill batch
        self._taken = 0

    def due(
        self, running_batch: ScheduleBatch, last_batch: ScheduleBatch | None, now: float
    ) -> bool:
        """Return whether the next batch shall be a decode step.

        Args:
            running_batch: the requests that decode.
            last_batch: the batch launched last. Under the overlap schedule its result is still to
                come.
            now: monotonic seconds.
        """
        if running_batch.is_empty() or running_batch.is_prefill_only:
            return False
        if last_batch is not None and last_batch.forward_mode.is_decode():
            return False
        in_flight_s = self._prefill_s if self._overlap and last_batch is not None else 0.0
        tightest_s = min(req.kairos.slo.tpot_s for req in running_batch.reqs)
        if now + in_flight_s < self._step_s + tightest_s:
            return False
        self._taken += 1
        return True

    def measured(self, batch: ScheduleBatch, now: float) -> None:
        """Note that the result of a batch was processed at `now`, monotonic seconds."""
        mode = batch.forward_mode
        if mode.is_mixed() or not mode.is_extend_without_speculative():
            self._step_s = now
        else:
            self._prefill_s = now - self._end_s if math.isfinite(self._end_s) else 0.0
        self._end_s = now

    def snapshot(self) -> dict[str, int]:
        """Return counters for /server_info. `taken`: decode steps that preceded a prompt."""
        return {"taken": self._taken}
