"""The prompts that a prefill server has before it, as its policy knows them."""

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

from sglang.srt.kairos.planned_batch import job_of, total_tokens

from kairos.policy.priorities import PriorityQueues

_number = attrgetter("kairos.number")


class PrefillJobs:
    """Upstream `Req`s that wait or are started, kept in step with the scheduler's lists.

    Most passes find the queue as the last one left it, with some more at its end, and then only
    those cost time: to look at a thousand requests takes a millisecond.

    Args:
        queue: the policy's; gets one job per request.
    """

    def __init__(self, queue: PriorityQueues) -> None:
        self._queue = queue
        self._reqs: dict[int, Any] = {}
        self._start_of: dict[int, int] = {}  # of the started ones, in their order
        self._starts = 0
        self._left: list[Any] = []

    def __len__(self) -> int:
        return len(self._reqs)

    def __contains__(self, number: object) -> bool:
        return number in self._reqs

    def __getitem__(self, number: int) -> Any:
        return self._reqs[number]

    def waits(self, number: int | None) -> bool:
        """It is known, and nothing of it has been computed."""
        return number in self._reqs and number not in self._start_of

    def began_after(self, number: int, others: Iterable[int]) -> bool:
        """Whether a started one began later than one of `others` that are started, too."""
        begun = self._start_of[number]
        return any(self._start_of.get(other, begun) < begun for other in others)

    def sync(self, waiting: list[Any], started: Sequence[Any], policy: Any) -> list[Any]:
        """Take in what has come, has gone and was computed since; returns the new ones.

        Args:
            waiting: the scheduler's queue.
            started: prompts of which a part is computed.
            policy: upstream's `SchedulePolicy`, for its priorities.
        """
        fresh = self._appended(waiting, started)
        if fresh is None:
            fresh = self._compared(waiting, started)
        sign = policy.priority_sign if policy.enable_priority_scheduling else 0
        for req in fresh:
            self._reqs[req.kairos.number] = req
            self._queue.add(job_of(req), sign * (req.priority or 0))
        for req in started:
            done = min(req.extend_end, total_tokens(req) - 1)  # nothing started is through
            self._queue.progress(req.kairos.number, done)
            self.note_start(req.kairos.number)
        return fresh

    def record_queue(self, waiting: Sequence[Any]) -> None:
        """This pass leaves the scheduler's queue like that."""
        self._left = list(waiting)

    def note_start(self, number: int) -> None:
        """A first part of it is being computed, or more."""
        if number not in self._start_of:
            self._starts += 1
            self._start_of[number] = self._starts

    def clear(self) -> None:
        """Nobody waits and nobody is started."""
        self._left = []
        for number in [*self._reqs]:
            self.drop(number)

    def drop(self, number: int) -> None:
        """It is through, was aborted, or begins anew; KeyError if it is not known."""
        self._queue.remove(number)
        del self._reqs[number]
        self._start_of.pop(number, None)

    def _appended(self, waiting: list[Any], started: Sequence[Any]) -> list[Any] | None:
        """What came behind the queue that was left; None if anything else has happened."""
        known = len(self._left)
        if (
            len(self._reqs) - len(self._start_of) != known
            or self._start_of.keys() != set(map(_number, started))
            or waiting[:known] != self._left  # objects are compared, not looked into
        ):
            return None
        fresh = waiting[known:]
        return None if any(_number(req) in self._reqs for req in fresh) else fresh

    def _compared(self, waiting: list[Any], started: Sequence[Any]) -> list[Any]:
        """The new ones of all; those that are gone are forgotten."""
        current = {_number(req): req for req in waiting}
        # What upstream has given back to the queue is without its KV again.
        for number in self._start_of.keys() & current.keys():
            self.drop(number)
        current |= {_number(req): req for req in started}
        for number in self._reqs.keys() - current.keys():
            self.drop(number)
        return [current[number] for number in sorted(current.keys() - self._reqs.keys())]
