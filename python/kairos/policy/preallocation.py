"""Preallocation: which prompts get decode memory before they are prefilled.

A prompt holds the memory from here until its last token, through its wait for prefill. What is
given to prompts that miss their objective anyway is missing for those that could meet it.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from kairos.errors import InputError
from kairos.policy.growth import Floats, peak_tokens


class Asking(NamedTuple):
    """A prompt that asks for memory.

    Attributes:
        id: breaks ties; the same on all tensor-parallel ranks.
        tokens: of the prompt.
        asked_s: when it asked, monotonic seconds.
        deadline_s: of its first token.
        work_s: shortest prefill that it may need, seconds.
        output_tokens: expected; 0 where nothing is known.
        needed_tokens: free tokens that the engine insists on before it gives memory away; 0: the
            prompt's and the reserve.
        server: name of the prefill server that it goes to; the same for all where nobody knows.
    """

    id: int
    tokens: int
    asked_s: float
    deadline_s: float
    work_s: float
    output_tokens: float = 0.0
    needed_tokens: float = 0.0
    server: str = ""


class Room(NamedTuple):
    """Memory of a decode server, tokens.

    Attributes:
        capacity: all of it.
        free: what may be given away now, the engine's own reserve taken off.
        reserve: what the engine's reserve grows by with every request.
        pending: prompts that hold memory and are not prefilled yet.
        contexts, remaining: of the residents, promised ones included; see `peak_tokens`. Empty
            where nothing is known about lengths.
        slots: prompts that can be taken in before the engine runs out of rows.
    """

    capacity: float
    free: float
    reserve: float
    pending: Sequence[Asking]
    contexts: Floats
    remaining: Floats
    slots: int = sys.maxsize


class PreallocationParams(NamedTuple):
    """Attributes:
    peak_share: share of capacity that the predicted peak may reach.
    late_share: late prompts get memory only up to this share of capacity in use.
    late_pending_share: and together no more than this share, or one at a time.
    ample_s: prompts with more time to spare than this
    ample_share: get memory only up to this share of capacity in use.
    horizon_s: a prompt waits while shorter ones, which hold memory for the same prefill server,
        are more than so much work for it.
    elder_s: a prompt that has asked for so long goes first, late or not, and only a bounded amount
        of short ones passes it.
    elder_credit: this share of all memory granted may go to elders. More would let a backlog of
        given-up prompts push out those that are on time.
    lost_s: a prompt that has asked for so long needs no credit, only that late ones do not hold
        their share yet: the engine would give it up soon.
    """

    peak_share: float = 0.98
    late_share: float = 0.6
    late_pending_share: float = 0.1
    ample_s: float = 10.0
    ample_share: float = 0.7
    horizon_s: float = 2.0
    elder_s: float = 30.0
    elder_credit: float = 0.05
    lost_s: float = math.inf

    def check(self) -> None:
        """Raise `InputError` for a value out of range."""
        for name, value in self._asdict().items():
            high = math.inf if name.endswith("_s") else 1.0
            if not 0.0 <= value <= high:
                raise InputError(f"preallocation: {name} = {value!r}; allowed are 0 to {high:g}")


LEAST_WORK = 0.5
"""A prefix cache may spare a prompt part of its prefill, and a decode server does not know which.
This share of it is taken for certain."""

PASSING = 0.25
"""Who is no longer than this share of an elder may pass it."""


def least_work_s(whole_s: float, objective_s: float) -> float:
    """Shortest prefill that a prompt may need, seconds.

    Args:
        whole_s: its prefill without any prefix hit.
        objective_s: its time to first token.
    """
    least_s = LEAST_WORK * whole_s
    # Who asks for less time than that counts on the cache.
    return least_s if least_s <= objective_s else LEAST_WORK * objective_s


class Grant(NamedTuple):
    """Attributes:
    at: index of the prompt.
    late: it was late when granted.
    """

    at: int
    late: bool


class Preallocation:
    """Feasible prompts first, short ones first, nobody blocked by one that does not fit."""

    def __init__(self, params: PreallocationParams | None = None) -> None:
        self.params = params or PreallocationParams()
        self.params.check()
        self._credit = 0.0
        self._waited_for = 0  # id of the elder that did not fit
        self._passed = 0  # tokens of those that have passed it

    def grant(self, asking: Sequence[Asking], room: Room, now_s: float) -> list[Grant]:
        """Prompts that get memory now, in this order."""
        if room.slots <= 0:
            return []
        p = self.params
        left = _Left(room, p.peak_share)
        elder = self._elder(asking, room, now_s)
        late: list[int] = []
        on_time: list[int] = []
        for at in sorted(range(len(asking)), key=lambda i: (asking[i].tokens, asking[i].id)):
            if at != elder:
                (late if is_late(asking[at], now_s) else on_time).append(at)
        granted: list[Grant] = []
        if elder is not None:
            prompt = asking[elder]
            if not left.take(prompt):
                short = [at for at in on_time if asking[at].tokens <= PASSING * prompt.tokens]
                timely = self._timely(asking, short, room, left, now_s)
                return [Grant(at, False) for at in self._passing(prompt, asking, timely)]
            self._credit -= prompt.tokens
            granted.append(Grant(elder, is_late(prompt, now_s)))
        for at in self._timely(asking, on_time, room, left, now_s):
            granted.append(Grant(at, False))
            self._credit += p.elder_credit * asking[at].tokens
        pending = _late_tokens(room, now_s)
        for at in late:
            tokens = asking[at].tokens
            if not left.within(p.late_share, tokens) or self._crowded(pending, tokens, room):
                break
            if left.take(asking[at]):
                granted.append(Grant(at, True))
                self._credit += p.elder_credit * tokens
                pending += tokens
        self._credit = min(self._credit, room.capacity)
        return granted

    def _timely(
        self, asking: Sequence[Asking], on_time: list[int], room: Room, left: "_Left", now_s: float
    ) -> Iterator[int]:
        """Take memory for one after the other of those on time, short ones first."""
        p = self.params
        shorter = _Shorter(room.pending)
        for at in on_time:
            prompt = asking[at]
            if shorter.work_s(prompt) > p.horizon_s:
                continue
            if self._has_time(prompt, now_s) and not left.within(p.ample_share, prompt.tokens):
                continue
            if left.take(prompt):
                shorter.add(prompt)
                yield at

    def _passing(
        self, elder: Asking, asking: Sequence[Asking], timely: Iterator[int]
    ) -> Iterator[int]:
        """What is freed is for the elder, but short ones pass it until they have taken as much as
        it needs: the room for a long one comes together over seconds, which they do not have."""
        if elder.id != self._waited_for:
            self._waited_for, self._passed = elder.id, 0
        while self._passed < elder.tokens:
            at = next(timely, None)
            if at is None:
                return
            self._passed += asking[at].tokens
            yield at

    def _elder(self, asking: Sequence[Asking], room: Room, now_s: float) -> int | None:
        """Index of the prompt that has asked for longest, if that is too long and affordable. One
        that would not even fit an empty server is nobody to wait for."""
        fitting = (i for i, prompt in enumerate(asking) if _need(prompt, room) <= room.capacity)
        at = min(fitting, key=lambda i: (asking[i].asked_s, asking[i].id), default=None)
        if at is None:
            return None
        waited_s = now_s - asking[at].asked_s
        if self._credit > 0.0:
            return at if waited_s > self.params.elder_s else None
        crowded = self._crowded(_late_tokens(room, now_s), asking[at].tokens, room)
        return at if waited_s > self.params.lost_s and not crowded else None

    def _has_time(self, prompt: Asking, now_s: float) -> bool:
        """Whether it can wait. One that streams already has no deadline, and cannot."""
        return self.params.ample_s < prompt.deadline_s - prompt.work_s - now_s < math.inf

    def _crowded(self, pending: int, tokens: int, room: Room) -> bool:
        """Whether late prompts hold too much already for one more."""
        return pending > 0 and pending + tokens > self.params.late_pending_share * room.capacity


def _need(prompt: Asking, room: Room) -> float:
    """Free tokens without which it gets no memory."""
    return max(prompt.tokens + room.reserve, prompt.needed_tokens)


def is_late(prompt: Asking, now_s: float) -> bool:
    """Whether it misses its deadline even if its prefill began now."""
    return now_s + prompt.work_s > prompt.deadline_s


def _late_tokens(room: Room, now_s: float) -> int:
    """Memory held by prompts that wait for a prefill and miss their deadlines."""
    return sum(prompt.tokens for prompt in room.pending if is_late(prompt, now_s))


class _Shorter:
    """Work that prefill servers have in shorter prompts; asked about ever longer ones."""

    def __init__(self, pending: Sequence[Asking]) -> None:
        # Late ones count: they are there because prefill is behind.
        self._held = sorted(pending, key=lambda prompt: (prompt.tokens, prompt.id), reverse=True)
        self._work_s: dict[str, float] = {}

    def work_s(self, prompt: Asking) -> float:
        """Of those that are shorter than `prompt`, for its server."""
        while self._held and self._held[-1].tokens < prompt.tokens:
            self.add(self._held.pop())
        return self._work_s.get(prompt.server, 0.0)

    def add(self, prompt: Asking) -> None:
        self._work_s[prompt.server] = self._work_s.get(prompt.server, 0.0) + prompt.work_s


# Prompts are tried short ones first: when so many would overfill memory at its peak, longer ones
# would too, and a pass of the event loop has no time to find the exception.
_PEAK_REFUSALS = 8


class _Left:
    """What is left of a `Room` while it is being given away."""

    def __init__(self, room: Room, peak_share: float) -> None:
        self._room = room
        self._free = room.free
        self._contexts, self._remaining = room.contexts, room.remaining
        self._most = peak_share * room.capacity
        self.used = max(0.0, room.capacity - room.free)
        self._slots = room.slots
        self._refusals = 0

    def within(self, share: float, tokens: int) -> bool:
        """Whether no more than this share of all memory is in use with `tokens` more. An empty
        server takes anybody."""
        return self.used + tokens <= share * self._room.capacity or self.used <= 0.0

    def take(self, prompt: Asking) -> bool:
        """Take memory for `prompt` if it fits, now and at the peak."""
        needed = prompt.tokens + self._room.reserve
        if self._slots <= 0 or _need(prompt, self._room) > self._free:
            return False
        if self._refusals >= _PEAK_REFUSALS:
            return False
        if prompt.output_tokens > 0.0 and len(self._contexts):
            contexts = np.append(self._contexts, float(prompt.tokens))
            remaining = np.append(self._remaining, prompt.output_tokens)
            if peak_tokens(contexts, remaining) > self._most:
                self._refusals += 1
                return False
            self._contexts, self._remaining = contexts, remaining
        self._slots -= 1
        self._free -= needed
        self.used += needed
        return True
