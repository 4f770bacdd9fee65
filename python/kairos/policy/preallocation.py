"""Preallocation: which prompts get decode memory before they are prefilled.

A prompt holds the memory from here until its last token, through its wait for prefill. What is
given to prompts that miss their objective anyway is missing for those that could meet it.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from kairos.policy.growth import Floats, peak_tokens
from kairos.validation import Range, check_range


class PreallocationRequest(NamedTuple):
    """A prompt that asks for memory.

    Attributes:
        id: breaks ties; the same on all tensor-parallel ranks.
        tokens: of the prompt.
        requested_s: when it asked, monotonic seconds.
        deadline_s: of its first token.
        min_prefill_s: shortest prefill that it may need, seconds.
        expected_output_tokens: expected; 0 where nothing is known.
        required_free_tokens: tokens that must be free before the engine gives memory away; 0: the
            prompt's and the reserve.
        prefill_server: name of its prefill server; the same for all where it is not known.
    """

    id: int
    tokens: int
    requested_s: float
    deadline_s: float
    min_prefill_s: float
    expected_output_tokens: float = 0.0
    required_free_tokens: float = 0.0
    prefill_server: str = ""


class DecodeMemory(NamedTuple):
    """Memory of a decode server, tokens.

    Attributes:
        capacity_tokens: all of it.
        free_tokens: what may be given away now, the engine's own reserve taken off.
        reserve_tokens: what the engine's reserve grows by with every request.
        pending: prompts that hold memory and are not prefilled yet.
        contexts, remaining: of the residents, promised ones included; see `peak_tokens`. Empty
            where nothing is known about lengths.
        slots: prompts that can be taken in before the engine runs out of rows.
    """

    capacity_tokens: float
    free_tokens: float
    reserve_tokens: float
    pending: Sequence[PreallocationRequest]
    contexts: Floats
    remaining: Floats
    slots: int = sys.maxsize


class PreallocationParams(NamedTuple):
    """Attributes:
    peak_share: share of capacity that the predicted peak may reach.
    infeasible_share: late prompts get memory only up to this share of capacity in use.
    infeasible_pending_share: and together no more than this share, or one at a time.
    loose_deadline_s: prompts with more time to spare than this
    loose_deadline_share: get memory only up to this share of capacity in use.
    horizon_s: a prompt waits while shorter ones, which hold memory for the same prefill server,
        are more than so much work for it.
    aged_s: a prompt that has asked for so long goes first, late or not, and only a bounded amount
        of short ones passes it.
    aged_credit_share: share of all memory granted that may go to aged prompts. More would let a
        backlog of infeasible prompts push out the feasible ones.
    engine_timeout_s: a prompt that has waited this long needs no credit, only that late ones do not
        hold their share yet: the engine would give it up soon.
    """

    peak_share: float = 0.98
    infeasible_share: float = 0.6
    infeasible_pending_share: float = 0.1
    loose_deadline_s: float = 10.0
    loose_deadline_share: float = 0.7
    horizon_s: float = 2.0
    aged_s: float = 30.0
    aged_credit_share: float = 0.05
    engine_timeout_s: float = math.inf

    def check(self) -> None:
        """Raise `InputError` for a value out of range."""
        for name, value in self._asdict().items():
            high = math.inf if name.endswith("_s") else 1.0
            check_range(f"preallocation: {name}", value, Range(0.0, high))


MIN_WORK_SHARE = 0.5
"""A prefix cache may spare a prompt part of its prefill, and a decode server does not know which.
This share of it is taken for certain."""

MAX_BYPASS_LENGTH_SHARE = 0.25
"""Who is no longer than this share of an elder may pass it."""


def shortest_prefill_s(whole_s: float, objective_s: float) -> float:
    """Shortest prefill that a prompt may need, seconds.

    Args:
        whole_s: its prefill without any prefix hit.
        objective_s: its time to first token.
    """
    least_s = MIN_WORK_SHARE * whole_s
    # Who asks for less time than that counts on the cache.
    return least_s if least_s <= objective_s else MIN_WORK_SHARE * objective_s


class Grant(NamedTuple):
    """Attributes:
    at: index of the prompt.
    infeasible: it was late when granted.
    """

    at: int
    infeasible: bool


class Preallocation:
    """Feasible prompts first, short ones first, nobody blocked by one that does not fit."""

    def __init__(self, params: PreallocationParams | None = None) -> None:
        self.params = params or PreallocationParams()
        self.params.check()
        self._credit = 0.0
        self._waited_for = 0  # id of the elder that did not fit
        self._passed = 0  # tokens of those that have passed it

    def grant(
        self, asking: Sequence[PreallocationRequest], room: DecodeMemory, now_s: float
    ) -> list[Grant]:
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
                (late if is_infeasible(asking[at], now_s) else on_time).append(at)
        granted: list[Grant] = []
        if elder is not None:
            prompt = asking[elder]
            if not left.take(prompt):
                short = [
                    at
                    for at in on_time
                    if asking[at].tokens <= MAX_BYPASS_LENGTH_SHARE * prompt.tokens
                ]
                timely = self._timely(asking, short, room, left, now_s)
                return [Grant(at, False) for at in self._passing(prompt, asking, timely)]
            self._credit -= prompt.tokens
            granted.append(Grant(elder, is_infeasible(prompt, now_s)))
        for at in self._timely(asking, on_time, room, left, now_s):
            granted.append(Grant(at, False))
            self._credit += p.aged_credit_share * asking[at].tokens
        pending = _late_tokens(room, now_s)
        for at in late:
            tokens = asking[at].tokens
            if not left.within(p.infeasible_share, tokens) or self._crowded(pending, tokens, room):
                break
            if left.take(asking[at]):
                granted.append(Grant(at, True))
                self._credit += p.aged_credit_share * tokens
                pending += tokens
        self._credit = min(self._credit, room.capacity_tokens)
        return granted

    def _timely(
        self,
        asking: Sequence[PreallocationRequest],
        on_time: list[int],
        room: DecodeMemory,
        left: "_Left",
        now_s: float,
    ) -> Iterator[int]:
        """Take memory for one after the other of those on time, short ones first."""
        p = self.params
        shorter = _Shorter(room.pending)
        for at in on_time:
            prompt = asking[at]
            if shorter.work_s(prompt) > p.horizon_s:
                continue
            if self._has_time(prompt, now_s) and not left.within(
                p.loose_deadline_share, prompt.tokens
            ):
                continue
            if left.take(prompt):
                shorter.add(prompt)
                yield at

    def _passing(
        self,
        elder: PreallocationRequest,
        asking: Sequence[PreallocationRequest],
        timely: Iterator[int],
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

    def _elder(
        self, asking: Sequence[PreallocationRequest], room: DecodeMemory, now_s: float
    ) -> int | None:
        """Index of the prompt that has asked for longest, if that is too long and affordable. One
        that would not even fit an empty server is nobody to wait for."""
        fitting = (
            i for i, prompt in enumerate(asking) if _need(prompt, room) <= room.capacity_tokens
        )
        at = min(fitting, key=lambda i: (asking[i].requested_s, asking[i].id), default=None)
        if at is None:
            return None
        waited_s = now_s - asking[at].requested_s
        if self._credit > 0.0:
            return at if waited_s > self.params.aged_s else None
        crowded = self._crowded(_late_tokens(room, now_s), asking[at].tokens, room)
        return at if waited_s > self.params.engine_timeout_s and not crowded else None

    def _has_time(self, prompt: PreallocationRequest, now_s: float) -> bool:
        """Whether it can wait. One that streams already has no deadline, and cannot."""
        return (
            self.params.loose_deadline_s
            < prompt.deadline_s - prompt.min_prefill_s - now_s
            < math.inf
        )

    def _crowded(self, pending: int, tokens: int, room: DecodeMemory) -> bool:
        """Whether late prompts hold too much already for one more."""
        return (
            pending > 0
            and pending + tokens > self.params.infeasible_pending_share * room.capacity_tokens
        )


def _need(prompt: PreallocationRequest, room: DecodeMemory) -> float:
    """Free tokens without which it gets no memory."""
    return max(prompt.tokens + room.reserve_tokens, prompt.required_free_tokens)


def is_infeasible(prompt: PreallocationRequest, now_s: float) -> bool:
    """Whether it misses its deadline even if its prefill began now."""
    return now_s + prompt.min_prefill_s > prompt.deadline_s


def _late_tokens(room: DecodeMemory, now_s: float) -> int:
    """Memory held by prompts that wait for a prefill and miss their deadlines."""
    return sum(prompt.tokens for prompt in room.pending if is_infeasible(prompt, now_s))


class _Shorter:
    """Work that prefill servers have in shorter prompts; asked about ever longer ones."""

    def __init__(self, pending: Sequence[PreallocationRequest]) -> None:
        # Late ones count: they are there because prefill is behind.
        self._held = sorted(pending, key=lambda prompt: (prompt.tokens, prompt.id), reverse=True)
        self._work_s: dict[str, float] = {}

    def work_s(self, prompt: PreallocationRequest) -> float:
        """Of those that are shorter than `prompt`, for its server."""
        while self._held and self._held[-1].tokens < prompt.tokens:
            self.add(self._held.pop())
        return self._work_s.get(prompt.prefill_server, 0.0)

    def add(self, prompt: PreallocationRequest) -> None:
        self._work_s[prompt.prefill_server] = (
            self._work_s.get(prompt.prefill_server, 0.0) + prompt.min_prefill_s
        )


# Prompts are tried short ones first: when so many would overfill memory at its peak, longer ones
# would too, and a pass of the event loop has no time to find the exception.
_PEAK_REFUSALS = 8


class _Left:
    """What is left of a `DecodeMemory` while it is being given away."""

    def __init__(self, room: DecodeMemory, peak_share: float) -> None:
        self._room = room
        self._free = room.free_tokens
        self._contexts, self._remaining = room.contexts, room.remaining
        self._most = peak_share * room.capacity_tokens
        self.used = max(0.0, room.capacity_tokens - room.free_tokens)
        self._slots = room.slots
        self._refusals = 0

    def within(self, share: float, tokens: int) -> bool:
        """Whether no more than this share of all memory is in use with `tokens` more. An empty
        server takes anybody."""
        return self.used + tokens <= share * self._room.capacity_tokens or self.used <= 0.0

    def take(self, prompt: PreallocationRequest) -> bool:
        """Take memory for `prompt` if it fits, now and at the peak."""
        needed = prompt.tokens + self._room.reserve_tokens
        if self._slots <= 0 or _need(prompt, self._room) > self._free:
            return False
        if self._refusals >= _PEAK_REFUSALS:
            return False
        if prompt.expected_output_tokens > 0.0 and len(self._contexts):
            contexts = np.append(self._contexts, float(prompt.tokens))
            remaining = np.append(self._remaining, prompt.expected_output_tokens)
            if peak_tokens(contexts, remaining) > self._most:
                self._refusals += 1
                return False
            self._contexts, self._remaining = contexts, remaining
        self._slots -= 1
        self._free -= needed
        self.used += needed
        return True
