"""The prompts that one prefill worker holds, by the router's account."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kairos.policy.sorted_rows import SortedRows

_UNFINISHED = 0.05
"""A prompt that is not done keeps this share of its work, however late it is."""
_GRACE_S = 0.25
"""How late the news of a prompt's end may be: a batch, the transfer, a busy router."""


class SentPrompt(NamedTuple):
    """A prompt that a prefill worker has to compute: the row `backlog_kernel.ROW`."""

    deadline_s: float
    work_s: float
    longest_s: float
    rest_s: float
    tokens: int
    overdue_s: float = 0.0


class Backlog(SortedRows):
    """Prompts in the order in which the worker is taken to serve them: by (rank, id).

    Between events they are served one after the other at the predicted speed. A prompt that should
    be done but is not keeps a rest: the worker is never believed idle while it holds work.

    The first construction in a process compiles or loads the kernels (seconds, once per machine).
    """

    def __init__(self) -> None:
        from kairos.router.placement import backlog_kernel

        super().__init__(backlog_kernel.ROW)
        self._kernel = backlog_kernel
        self._clock_s = -math.inf
        # Compiles.
        backlog_kernel.advance(self.live, 1.0, 1.0, 0.0, True, 0.0)
        self.ahead_s(0.0, 0.0, 0.0, True, 0.0)
        self.committed_work(0.0, True)
        self.begun_s(1.0)
        self.rest_s()

    @property
    def tokens(self) -> int:
        """Prompt tokens, computed or not."""
        return int(self.live["tokens"].sum())

    def pop(self, id: int) -> float | None:
        """Remove a prompt; return its work, uncalibrated, or None if it is not here (any more)."""
        if id not in self:
            return None
        work_s = float(self.live["work"][self.index(id)])
        self.remove(id)
        return work_s

    def advance(self, now_s: float, factor: float, in_turn: bool) -> None:
        """Serve for the time since the last call; see `backlog_kernel.advance`."""
        passed = now_s - self._clock_s
        if passed > 0.0:
            self._clock_s = now_s
            if len(self):
                self._kernel.advance(self.live, passed, factor, _UNFINISHED, in_turn, _GRACE_S)

    def ahead_s(
        self, now_s: float, deadline_s: float, work_s: float, by_deadline: bool, slice_s: float
    ) -> float:
        """Return the work before a request; see `backlog_kernel.ahead`."""
        live = self.live
        return float(self._kernel.ahead(live, now_s, deadline_s, work_s, by_deadline, slice_s))

    def committed_work(self, now_s: float, by_deadline: bool) -> npt.NDArray[np.float64]:
        """Return (deadline, seconds) of the prompts that no other may pass, shape (prompts, 2)."""
        found = np.empty((len(self), 2))
        return found[: self._kernel.committed(self.live, now_s, by_deadline, found)]

    def rest_s(self) -> float:
        """Return the seconds of work that are left."""
        return float(self._kernel.rest(self.live))

    def begun_s(self, factor: float) -> float:
        """Return the work that is taken to be done of unfinished prompts, uncalibrated."""
        return float(self._kernel.begun(self.live, factor))

    def scale(self, share: float) -> None:
        """Keep only this share of the work that is left of each prompt."""
        self.live["rest"] *= share
