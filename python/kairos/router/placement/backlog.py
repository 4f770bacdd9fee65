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
    """A prompt that a prefill worker has to compute.

    Attributes:
        deadline_s: when its first token is due, monotonic seconds.
        work_s: all of its work, uncalibrated.
        longest_s: the same without a prefix hit.
        rest_s: the work that is left, calibrated.
        tokens: its length.
    """

    deadline_s: float
    work_s: float
    longest_s: float
    rest_s: float
    tokens: int


class Backlog:
    """Prompts in the order in which the worker is taken to serve them: by (rank, id).

    Between events they are served one after the other at the predicted speed. A prompt that should
    be done but is not keeps a rest: the worker is never believed idle while it holds work.

    The first construction in a process compiles or loads the kernels (seconds, once per machine).
    """

    def __init__(self) -> None:
        from kairos.router.placement import backlog_kernel

        self._kernel = backlog_kernel
        self._prompts = SortedRows(backlog_kernel.ROW)
        self._clock_s = -math.inf
        # Compiles.
        backlog_kernel.advance(self._prompts.live, 1.0, 1.0, 0.0, True, 0.0)
        self.ahead_s(0.0, 0.0, 0.0, True, 0.0)
        self.committed_work(0.0, True)
        self.begun_s(1.0)
        self.rest_s()

    def __len__(self) -> int:
        return len(self._prompts)

    def __contains__(self, id: int) -> bool:
        return id in self._prompts

    @property
    def ids(self) -> list[int]:
        """Ids in the order of service."""
        return self._prompts.ids

    @property
    def tokens(self) -> int:
        """Prompt tokens, computed or not."""
        return int(self._prompts.live["tokens"].sum())

    def add(self, id: int, rank: float, prompt: SentPrompt) -> None:
        """Put a prompt behind those of lower rank."""
        deadline_s, work_s, longest_s, rest_s, tokens = prompt
        self._prompts.add(rank, id, (deadline_s, work_s, rest_s, tokens, longest_s, 0.0))

    def remove(self, id: int) -> float | None:
        """Return the prompt's work, uncalibrated; None if it is not here (any more)."""
        if id not in self._prompts:
            return None
        work_s = float(self._prompts.live["work"][self._prompts.index(id)])
        self._prompts.remove(id)
        return work_s

    def advance(self, now_s: float, factor: float, in_turn: bool) -> None:
        """Serve for the time since the last call; see `backlog_kernel.advance`."""
        passed = now_s - self._clock_s
        if passed > 0.0:
            self._clock_s = now_s
            if len(self._prompts):
                self._kernel.advance(
                    self._prompts.live, passed, factor, _UNFINISHED, in_turn, _GRACE_S
                )

    def ahead_s(
        self, now_s: float, deadline_s: float, work_s: float, by_deadline: bool, slice_s: float
    ) -> float:
        """Return the work before a request; see `PrefillTarget.ahead_s`."""
        live = self._prompts.live
        return float(self._kernel.ahead(live, now_s, deadline_s, work_s, by_deadline, slice_s))

    def committed_work(self, now_s: float, by_deadline: bool) -> npt.NDArray[np.float64]:
        """Return (deadline, seconds) of the prompts that no other may pass.

        Shape (prompts, 2); see `PrefillTarget.committed_work`.
        """
        found = np.empty((len(self), 2))
        return found[: self._kernel.committed(self._prompts.live, now_s, by_deadline, found)]

    def rest_s(self) -> float:
        """Return the seconds of work that are left."""
        return float(self._kernel.rest(self._prompts.live))

    def begun_s(self, factor: float) -> float:
        """Return the work that is taken to be done of unfinished prompts, uncalibrated."""
        return float(self._kernel.begun(self._prompts.live, factor))

    def scale(self, share: float) -> None:
        """Keep only this share of the work that is left of each prompt."""
        self._prompts.live["rest"] *= share
