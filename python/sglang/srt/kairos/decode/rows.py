"""The requests of the running decode batch, as the rows that the slack policy reads."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sglang.srt.kairos.decode.skipping import has_penalty
from sglang.srt.kairos.request_state import StreamedToken
from sglang.srt.kairos.upstream import Req

from kairos.policy.length import group_of
from kairos.policy.residents import ROW, Rows
from kairos.slo import DEFAULT_CLASS, SloClasses

Indices = npt.NDArray[np.int64]


class DecodeRows:
    """A table whose row i describes the request at position i of the running batch.

    While the same requests run, no request is read: lengths come from the batch's tensor. A step
    in which all requests run is only counted, until the rows are read.

    Attributes:
        reqs: upstream's list of the requests that the rows describe.
        unskippable: shape (requests,): requests that run in every step.
    """

    def __init__(self, classes: SloClasses) -> None:
        self.reqs: Sequence[Req] = []
        self._rows: Rows = np.empty(0, ROW)
        self._steps = 0  # steps of all requests that the rows do not show yet
        self._end_s = 0.0
        self._prompt_tokens = np.empty(0, np.int64)
        self.unskippable = np.empty(0, np.bool_)
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
        """Note that all requests, the same as before, run in one more step.

        Args:
            end_s: end of that step, monotonic seconds.
        """
        self._steps += 1
        self._end_s = end_s

    def sync(self, reqs: Sequence[Req], lengths: Indices, now: float) -> list[Req] | None:
        """Follow the running batch.

        Args:
            reqs: requests of the batch, none of them finished.
            lengths: shape (requests,): tokens of each, the token of a step in flight included.
            now: monotonic seconds. The first token of a new request was streamed at this time.

        Returns:
            Requests that have left since the last call; None while the same requests run.
        """
        left = None
        if reqs is not self.reqs:
            left = self._follow(reqs, now)
        rows = self.rows
        rows["context_tokens"] = lengths
        rows["output_tokens"] = lengths - self._prompt_tokens
        return left

    def defer_clocks(self, seconds: float) -> None:
        """Move the TPOT clocks of all requests, as a pause of the server does.

        Args:
            seconds: for which no step ran.
        """
        rows = self.rows
        rows["first_token_s"] += seconds
        rows["last_token_s"] += seconds
        for req in self.reqs:
            defer_clock(req, seconds)

    def reorder(self, order: Indices) -> None:
        """Move the request at `order[i]` to position i, for every i."""
        self._rows = self.rows[order]
        self._prompt_tokens = self._prompt_tokens[order]
        self.unskippable = self.unskippable[order]
        self.reqs = [self.reqs[at] for at in order.tolist()]

    def length_group(self, req: Req) -> int:
        """Group of a request in the estimate of output lengths."""
        slo_class = self._classes.get(req.kairos.slo.slo_class, 0)
        return group_of(slo_class, len(req.origin_input_ids))

    def clear(self) -> list[Req]:
        """Remove all rows, and return the requests that they described."""
        left = list(self.reqs)
        if left:
            self._rows, self._prompt_tokens, self.reqs = self.rows[:0], self._prompt_tokens[:0], []
            self.unskippable = self.unskippable[:0]
        return left

    def _follow(self, reqs: Sequence[Req], now: float) -> list[Req]:
        known = {req.kairos.number: at for at, req in enumerate(self.reqs)}
        rows = np.empty(len(reqs), ROW)
        prompt_tokens = np.empty(len(reqs), np.int64)
        unskippable = np.empty(len(reqs), np.bool_)
        here, there = [], []
        for at, req in enumerate(reqs):
            was = known.pop(req.kairos.number, None)
            if was is None:
                rows[at] = self._joined(req, now)
                prompt_tokens[at] = len(req.origin_input_ids)
                unskippable[at] = has_penalty(req.sampling_params)
            else:
                here.append(at)
                there.append(was)
        rows[here] = self.rows[there]
        prompt_tokens[here] = self._prompt_tokens[there]
        unskippable[here] = self.unskippable[there]
        left = [self.reqs[at] for at in known.values()]
        self._rows, self._prompt_tokens, self.reqs = rows, prompt_tokens, reqs
        self.unskippable = unskippable
        return left

    def _joined(self, req: Req, now: float) -> np.void:
        request = req.kairos
        token = request.first_token
        if not isinstance(token, StreamedToken) and not token.held:
            token = request.first_token = StreamedToken(now)
        row = np.zeros(1, ROW)[0]
        row["id"] = request.number
        row["first_token_s"] = token.at_s if isinstance(token, StreamedToken) else now
        # A request that was retracted has waited, but starvation counts from its return.
        row["last_token_s"] = now
        row["hold_until_s"] = -np.inf
        row["tpot_s"] = request.slo.tpot_s
        row["max_new_tokens"] = max(1, req.sampling_params.max_new_tokens - 1)
        row["length_group"] = self.length_group(req)
        row["runs"] = True
        joined: np.void = row
        return joined


def defer_clock(req: Req, seconds: float) -> None:
    """Move the TPOT clock of a request; it has none before its first token is streamed."""
    token = req.kairos.first_token
    if isinstance(token, StreamedToken):
        req.kairos.first_token = StreamedToken(token.at_s + seconds)


def all_set(flags: npt.NDArray[np.bool_]) -> bool:
    """Return whether all flags are set, in a third of the time of `flags.all()`."""
    return bool(np.count_nonzero(flags) == len(flags))
