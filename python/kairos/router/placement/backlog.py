"""The prompts that one prefill instance holds, by the router's account."""

import math
from bisect import bisect_left, insort
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_UNFINISHED = 0.05
"""A prompt that is not done keeps this share of its work, however late it is."""
_GRACE_S = 0.25
"""How late the news of a prompt's end may be: a batch, the transfer, a busy router."""


class SentPrompt(NamedTuple):
    """A prompt that a prefill worker has to compute.

    Attributes:
        work_s: all of its work, uncalibrated.
        most_s: the same should no prefix hit come true.
        rest_s: what is left of it, calibrated.
        tokens: its length.
    """

    deadline_s: float
    work_s: float
    most_s: float
    rest_s: float
    tokens: int


class Backlog:
    """Prompts in the order in which the instance is taken to serve them: by (rank, id).

    Between events they are served one after the other at the predicted speed. One that should be
    done but is not keeps a rest: the instance is never believed idle while it holds work.

    The first construction in a process compiles or loads the kernels (seconds, once per machine).
    """

    def __init__(self) -> None:
        from kairos.router.placement import backlog_kernel

        self._kernel = backlog_kernel
        self._keys: list[tuple[float, int]] = []
        self._ranks: dict[int, float] = {}
        self._rows = np.zeros((64, backlog_kernel.COLUMNS))
        self._clock_s = -math.inf
        # Compiles.
        backlog_kernel.advance(self._live, 1.0, 1.0, 0.0, True, 0.0)
        self.ahead_s(0.0, 0.0, 0.0, True, 0.0)
        self.committed_work(0.0, True)
        self.begun_s(1.0)
        self.rest_s()

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, id: int) -> bool:
        return id in self._ranks

    @property
    def ids(self) -> list[int]:
        return [id for _, id in self._keys]

    @property
    def tokens(self) -> int:
        """Prompt tokens, computed or not."""
        return int(self._kernel.total(self._live, self._kernel.TOKENS))

    def add(self, id: int, rank: float, prompt: SentPrompt) -> None:
        """Put a prompt behind those of lower rank."""
        n = len(self._keys)
        if n == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        at = bisect_left(self._keys, (rank, id))
        insort(self._keys, (rank, id))
        self._ranks[id] = rank
        self._rows[at + 1 : n + 1] = self._rows[at:n]
        self._rows[at] = (
            prompt.deadline_s,
            prompt.work_s,
            prompt.rest_s,
            prompt.tokens,
            prompt.most_s,
            0.0,
        )

    def remove(self, id: int) -> float | None:
        """The prompt's work, uncalibrated; None if it is not here (any more)."""
        rank = self._ranks.pop(id, None)
        if rank is None:
            return None
        at = bisect_left(self._keys, (rank, id))
        n = len(self._keys)
        work_s = float(self._rows[at, self._kernel.WORK])
        self._rows[at : n - 1] = self._rows[at + 1 : n]
        del self._keys[at]
        return work_s

    def advance(self, now_s: float, factor: float, in_turn: bool) -> None:
        """Serve what time allowed since the last call.

        Args:
            factor: calibrates the work.
            in_turn: no prompt is served before the first one is done.
        """
        passed = now_s - self._clock_s
        if passed <= 0.0:
            return
        self._clock_s = now_s
        self._kernel.advance(self._live, passed, factor, _UNFINISHED, in_turn, _GRACE_S)

    def ahead_s(
        self, now_s: float, deadline_s: float, work_s: float, by_deadline: bool, slice_s: float
    ) -> float:
        """What would run before a request; see `PrefillTarget.ahead_s`."""
        return float(
            self._kernel.ahead(self._live, now_s, deadline_s, work_s, by_deadline, slice_s)
        )

    def committed_work(self, now_s: float, by_deadline: bool) -> npt.NDArray[np.float64]:
        """(deadline, seconds) of each prompt that no other may pass; see `PrefillTarget`."""
        found = np.empty((len(self._keys), 2))
        return found[: self._kernel.held(self._live, now_s, by_deadline, found)]

    def rest_s(self) -> float:
        """Seconds left of all."""
        return float(self._kernel.total(self._live, self._kernel.REST))

    def begun_s(self, factor: float) -> float:
        """What is taken to be done of the prompts that are not, uncalibrated."""
        return float(self._kernel.begun(self._live, factor))

    def scale(self, share: float) -> None:
        """Only this share of what is left of each is really left."""
        self._live[:, self._kernel.REST] *= share

    @property
    def _live(self) -> npt.NDArray[np.float64]:
        return self._rows[: len(self._keys)]
