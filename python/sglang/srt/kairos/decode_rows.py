"""The requests of the running decode batch, as the rows that the slack policy reads."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kairos.policy.length import group_of
from kairos.policy.residents import ROW, Rows
from kairos.slo import DEFAULT_CLASS, SloClasses

Indices = npt.NDArray[np.int64]


class DecodeRows:
    """Row i describes the request at position i of the running batch.

    Nothing is read per request while the same requests run: lengths come from the batch's tensor,
    and steps of everybody are only counted until somebody looks at the rows.

    Attributes:
        reqs: upstream's list of requests that the rows describe.
    """

    def __init__(self, classes: SloClasses) -> None:
        self._rows: Rows = np.empty(0, ROW)
        self._steps = 0  # of everybody, that the rows do not show yet
        self._end_s = 0.0
        self.reqs: Sequence[Any] = []
        self._prompts = np.empty(0, np.int64)
        self._classes = {name: i for i, name in enumerate([DEFAULT_CLASS, *classes.named])}

    @property
    def rows(self) -> Rows:
        """Shape (requests,), dtype `ROW`."""
        if self._steps:
            self._rows["context_tokens"] += self._steps
            self._rows["output_tokens"] += self._steps
            self._rows["last_token_s"] = self._end_s
            self._steps = 0
        return self._rows

    def step_of_all(self, end_s: float) -> None:
        """The same requests, all of them, run in one more step, which ends at `end_s`."""
        self._steps += 1
        self._end_s = end_s

    def sync(self, reqs: Sequence[Any], lengths: Indices, now: float) -> list[Any] | None:
        """Follow the batch.

        Args:
            reqs: its upstream requests, none of them finished.
            lengths: tokens of each, with those of a step in flight.
            now: monotonic seconds; a request seen for the first time got its first token now.

        Returns:
            requests that have left since the last call; None while the same requests run.
        """
        left = None
        if reqs is not self.reqs:
            left = self._follow(reqs, now)
        rows = self.rows
        rows["context_tokens"] = lengths
        rows["output_tokens"] = lengths - self._prompts
        return left

    def reorder(self, order: Indices) -> None:
        """The request at `order[i]` moves to position i."""
        self._rows = self.rows[order]
        self._prompts = self._prompts[order]
        self.reqs = [self.reqs[at] for at in order.tolist()]

    def group(self, req: Any) -> int:
        """Group of a request for the estimate of output lengths."""
        slo_class = self._classes.get(req.kairos.slo.slo_class, 0)
        return group_of(slo_class, len(req.origin_input_ids))

    def clear(self) -> list[Any]:
        """The batch is empty; returns the requests that have left."""
        left = list(self.reqs)
        if left:
            self._rows, self._prompts, self.reqs = self.rows[:0], self._prompts[:0], []
        return left

    def _follow(self, reqs: Sequence[Any], now: float) -> list[Any]:
        known = {req.kairos.number: at for at, req in enumerate(self.reqs)}
        rows = np.empty(len(reqs), ROW)
        prompts = np.empty(len(reqs), np.int64)
        here, there = [], []
        for at, req in enumerate(reqs):
            was = known.pop(req.kairos.number, None)
            if was is None:
                rows[at] = self._joined(req, now)
                prompts[at] = len(req.origin_input_ids)
            else:
                here.append(at)
                there.append(was)
        rows[here] = self.rows[there]
        prompts[here] = self._prompts[there]
        left = [self.reqs[at] for at in known.values()]
        self._rows, self._prompts, self.reqs = rows, prompts, reqs
        return left

    def _joined(self, req: Any, now: float) -> Any:
        request = req.kairos
        if request.first_token_s is None and not request.held:
            request.first_token_s = now
        row = np.zeros((), ROW)
        row["id"] = request.number
        row["first_token_s"] = now if request.first_token_s is None else request.first_token_s
        # One that comes back after a retraction has waited, but gets its turn as if fresh.
        row["last_token_s"] = now
        row["hold_until_s"] = -np.inf
        row["tpot_s"] = request.slo.tpot_s
        row["max_new_tokens"] = max(1, req.sampling_params.max_new_tokens - 1)
        row["length_group"] = self.group(req)
        row["runs"] = True
        return row[()]
