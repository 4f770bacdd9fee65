"""The prompts of a prefill server, as its policy knows them."""

from collections.abc import Iterable, Sequence
from operator import attrgetter

from sglang.srt.kairos.prefill.prompts import computed_tokens, prefill_job, total_tokens
from sglang.srt.kairos.upstream import Req, SchedulePolicy

from kairos.policy.priorities import PriorityQueues

_number = attrgetter("kairos.number")


class PrefillJobs:
    """Requests that wait or are started, kept in step with the scheduler's lists.

    Most passes find the queue as the last one left it, with new requests at its end. Then only the
    new ones cost time: looking at a thousand requests takes a millisecond.
    """

    def __init__(self, queue: PriorityQueues) -> None:
        """Begin empty.

        Args:
            queue: the policy's; it gets one job per request.
        """
        self._queue = queue
        self._reqs: dict[int, Req] = {}
        self._start_of: dict[int, int] = {}  # of the started ones, in their order
        self._starts = 0
        self._recorded: list[Req] = []

    def __len__(self) -> int:
        return len(self._reqs)

    def __contains__(self, number: object) -> bool:
        return number in self._reqs

    def __getitem__(self, number: int) -> Req:
        return self._reqs[number]

    def waits(self, number: int) -> bool:
        """Return whether a request is known and nothing of it has been computed."""
        return number in self._reqs and number not in self._start_of

    def began_after(self, number: int, others: Iterable[int]) -> bool:
        """Return whether a started request began later than one of `others` that are started."""
        begun = self._start_of[number]
        return any(self._start_of.get(other, begun) < begun for other in others)

    def sync(self, waiting: list[Req], started: Sequence[Req], policy: SchedulePolicy) -> list[Req]:
        """Take in which requests have come, have gone and were computed since the last pass.

        Args:
            waiting: the scheduler's queue.
            started: prompts of which a part is computed.
            policy: has upstream's priorities.

        Returns:
            the new requests.
        """
        fresh = self._appended(waiting, started)
        if fresh is None:
            fresh = self._compared(waiting, started)
        sign = policy.priority_sign if policy.enable_priority_scheduling else 0
        for req in fresh:
            self._reqs[req.kairos.number] = req
            self._queue.add(prefill_job(req), sign * (req.priority or 0))
        for req in started:
            # A started prompt has at least one token left.
            done = min(computed_tokens(req), total_tokens(req) - 1)
            self._queue.progress(req.kairos.number, done)
            self.note_start(req.kairos.number)
        return fresh

    def record_queue(self, waiting: Sequence[Req]) -> None:
        """Note the scheduler's queue at the end of a pass."""
        self._recorded = list(waiting)

    def note_start(self, number: int) -> None:
        """Note that a part of a request is being computed."""
        if number not in self._start_of:
            self._starts += 1
            self._start_of[number] = self._starts

    def clear(self) -> None:
        """Drop all requests."""
        self._recorded = []
        for number in [*self._reqs]:
            self.drop(number)

    def drop(self, number: int) -> None:
        """Drop a request that has finished, was aborted, or begins anew.

        Raises:
            KeyError: it is not known.
        """
        self._queue.remove(number)
        del self._reqs[number]
        self._start_of.pop(number, None)

    def _appended(self, waiting: list[Req], started: Sequence[Req]) -> list[Req] | None:
        """Return the requests behind the recorded queue; None if anything else has changed."""
        known = len(self._recorded)
        if (
            len(self._reqs) - len(self._start_of) != known
            or self._start_of.keys() != set(map(_number, started))
            or waiting[:known] != self._recorded  # compares objects without looking into them
        ):
            return None
        fresh = waiting[known:]
        return None if any(_number(req) in self._reqs for req in fresh) else fresh

    def _compared(self, waiting: Sequence[Req], started: Sequence[Req]) -> list[Req]:
        """Compare all requests, drop those that are gone and return the new ones."""
        current: dict[int, Req] = {_number(req): req for req in waiting}
        # A prompt that upstream has put back into the queue has lost its KV.
        for number in self._start_of.keys() & current.keys():
            self.drop(number)
        current |= {_number(req): req for req in started}
        for number in self._reqs.keys() - current.keys():
            self.drop(number)
        return [current[number] for number in sorted(current.keys() - self._reqs.keys())]
