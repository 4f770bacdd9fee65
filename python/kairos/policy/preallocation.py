"""Preallocation: which prompts get decode memory before they are prefilled.

A prompt holds the memory until its last token, through its wait for prefill. Memory that is granted
to prompts that miss their objective is not available to prompts that could meet it.
docs/explanation/preallocation.md has the method.
"""

import itertools
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from kairos.policy.best_effort import ObjectiveTraffic
from kairos.policy.growth import Floats, peak_tokens
from kairos.policy.starvation import StarvationCredit
from kairos.validation import Range, check_range

MIN_WORK_SHARE = 0.5
"""Share of a prompt's prefill that is certain. A prefix cache may spare the rest, and a decode
server cannot see it."""

MAX_BYPASS_LENGTH_SHARE = 0.25
"""Prompts of at most this share of an aged prompt's length may bypass it."""

MAX_PEAK_REFUSALS = 8
"""Prompts that may exceed memory at its peak before the rest of a pass is refused without a check.
Prompts are tried in order of length, so the rest would exceed it too."""


class PreallocationRequest(NamedTuple):
    """A prompt that waits for decode memory.

    Attributes:
        id: breaks ties; the same on all tensor-parallel ranks.
        tokens: length of the prompt.
        requested_s: when it requested memory, monotonic seconds.
        deadline_s: of its first token; infinite for a best-effort prompt, and for one that streams
            already.
        min_prefill_s: shortest prefill that it may need, seconds.
        expected_output_tokens: 0 where nothing is known.
        required_free_tokens: tokens that must be free before the engine gives memory away; 0: those
            of the prompt and the reserve.
        prefill_server: name of its prefill server; the same for all where it is not known.
        best_effort: it has no TTFT objective, and does not stream yet.
    """

    id: int
    tokens: int
    requested_s: float
    deadline_s: float
    min_prefill_s: float
    expected_output_tokens: float = 0.0
    required_free_tokens: float = 0.0
    prefill_server: str = ""
    best_effort: bool = False


class DecodeMemory(NamedTuple):
    """Memory of a decode server, tokens.

    Attributes:
        capacity_tokens: in total.
        free_tokens: available now, the engine's own reserve deducted.
        reserve_tokens: growth of the engine's reserve with every request.
        pending: prompts that hold memory and are not prefilled yet.
        contexts: context of each resident, prompts with granted memory included; see `peak_tokens`.
            Empty where nothing is known about lengths.
        remaining: tokens that each of them is expected to make.
        slots: prompts that can be granted memory before the engine runs out of rows.
    """

    capacity_tokens: float
    free_tokens: float
    reserve_tokens: float
    pending: Sequence[PreallocationRequest]
    contexts: Floats
    remaining: Floats
    slots: int = sys.maxsize


class PreallocationParams(NamedTuple):
    """Parameters of preallocation. Shares are of the server's memory.

    Attributes:
        peak_share: share that the predicted peak may reach.
        infeasible_share: share in use up to which infeasible prompts get memory.
        infeasible_pending_share: share that infeasible prompts may hold together before their
            prefill; one prompt may always hold its memory.
        loose_deadline_s: a prompt has a loose deadline if it has more than this time to spare.
        loose_deadline_share: share in use up to which prompts with a loose deadline get memory.
        horizon_s: a prompt waits while shorter prompts that hold memory are more than this work for
            its prefill server, seconds.
        aged_after: a prompt that has waited for this multiple of its TTFT objective is served
            first, feasible or not. A bounded amount of short prompts may bypass it.
        aged_least_s, aged_s: shortest and longest such wait.
        aged_credit_share: share of all memory granted that may go to aged prompts. More would let a
            backlog of infeasible prompts push out the feasible ones.
        engine_timeout_s: a prompt that has waited this long needs no credit, because the engine is
            about to abort it; infeasible prompts must not exceed their pending share.
    """

    peak_share: float = 0.98
    infeasible_share: float = 0.6
    infeasible_pending_share: float = 0.1
    loose_deadline_s: float = 10.0
    loose_deadline_share: float = 0.7
    horizon_s: float = 2.0
    aged_after: float = 6.0
    aged_least_s: float = 6.0
    aged_s: float = 30.0
    aged_credit_share: float = 0.05
    engine_timeout_s: float = math.inf

    def check(self) -> None:
        """Raise `InputError` for a value out of range."""
        for name, value in self._asdict().items():
            high = 1.0 if name.endswith("_share") else math.inf
            check_range(f"preallocation: {name}", value, Range(0.0, high))


class Grant(NamedTuple):
    """Memory for one prompt.

    Attributes:
        at: index of the prompt.
        infeasible: whether the prompt was infeasible when it was granted memory.
    """

    at: int
    infeasible: bool


def shortest_prefill_s(whole_s: float, objective_s: float) -> float:
    """Return the shortest prefill that a prompt may need, seconds.

    Args:
        whole_s: its prefill without any prefix hit.
        objective_s: its time to first token.
    """
    least_s = MIN_WORK_SHARE * whole_s
    # A prompt with a shorter objective relies on the prefix cache.
    return least_s if least_s <= objective_s else MIN_WORK_SHARE * objective_s


def is_infeasible(prompt: PreallocationRequest, now_s: float) -> bool:
    """Return whether a prompt misses its deadline even if its prefill begins now."""
    return now_s + prompt.min_prefill_s > prompt.deadline_s


class Preallocation:
    """Grants memory to feasible prompts first, then to infeasible ones, short ones first.

    A prompt that does not fit blocks no other, except that an aged one is served first. Best-effort
    prompts follow in the order in which they asked. Where no prompt with an objective is expected,
    they get all memory in that order, as on SGLang.

    Args:
        params: of the policy.
    """

    def __init__(self, params: PreallocationParams | None = None) -> None:
        self.params = params or PreallocationParams()
        self.params.check()
        self._traffic = ObjectiveTraffic()
        self._credit = StarvationCredit(self.params.aged_credit_share)
        self._reserved_for = 0  # id of the aged prompt that did not fit
        self._bypassed = 0  # tokens of the prompts that have bypassed it

    def grant(
        self, waiting: Sequence[PreallocationRequest], memory: DecodeMemory, now_s: float
    ) -> list[Grant]:
        """Return the prompts that get memory now, in this order.

        Args:
            waiting: the prompts that wait.
            memory: of the decode server.
            now_s: monotonic seconds.
        """
        if memory.slots <= 0:
            return []
        self._credit.limit = memory.capacity_tokens
        if not self.expects_objectives((*waiting, *memory.pending), now_s):
            return _in_order(waiting, memory)
        budget = _MemoryBudget(memory, self.params.peak_share)
        aged = self._aged(waiting, memory, now_s)
        infeasible: list[int] = []
        feasible: list[int] = []
        for at in sorted(range(len(waiting)), key=lambda i: (waiting[i].tokens, waiting[i].id)):
            if at != aged and not waiting[at].best_effort:
                (infeasible if is_infeasible(waiting[at], now_s) else feasible).append(at)
        granted: list[Grant] = []
        if aged is not None:
            prompt = waiting[aged]
            if not budget.take(prompt):
                most = MAX_BYPASS_LENGTH_SHARE * prompt.tokens
                short = [at for at in feasible if waiting[at].tokens <= most]
                takers = self._take_feasible(waiting, short, budget, now_s)
                return [Grant(at, False) for at in self._bypassing(prompt, waiting, takers)]
            self._credit.spend(prompt.tokens)
            granted.append(Grant(aged, is_infeasible(prompt, now_s)))
        for at in self._take_feasible(waiting, feasible, budget, now_s):
            granted.append(Grant(at, False))
            self._credit.earn(waiting[at].tokens)
        infeasible += [at for at in _by_request(waiting) if waiting[at].best_effort and at != aged]
        for at in self._take_infeasible(waiting, infeasible, budget, now_s):
            granted.append(Grant(at, not waiting[at].best_effort))
            self._credit.earn(waiting[at].tokens)
        return granted

    def expects_objectives(self, prompts: Iterable[PreallocationRequest], now_s: float) -> bool:
        """Return whether one of the prompts has an objective, or another is expected to come."""
        if not all(prompt.best_effort for prompt in prompts):
            self._traffic.note(now_s)
        return self._traffic.expected(now_s)

    def _take_feasible(
        self,
        waiting: Sequence[PreallocationRequest],
        feasible: list[int],
        budget: "_MemoryBudget",
        now_s: float,
    ) -> Iterator[int]:
        """Take memory for feasible prompts, short ones first; yields their indices."""
        p = self.params
        shorter = _ShorterWork(budget.memory.pending)
        for at in feasible:
            prompt = waiting[at]
            if shorter.of(prompt) > p.horizon_s:
                continue
            within = budget.within(p.loose_deadline_share, prompt.tokens)
            if self._has_loose_deadline(prompt, now_s) and not within:
                continue
            if budget.take(prompt):
                shorter.add(prompt)
                yield at

    def _take_infeasible(
        self,
        waiting: Sequence[PreallocationRequest],
        infeasible: list[int],
        budget: "_MemoryBudget",
        now_s: float,
    ) -> Iterator[int]:
        """Take memory for infeasible and best-effort prompts within their shares.

        Yields:
            Their indices.
        """
        pending = _yielding_tokens(budget.memory, now_s)
        for at in infeasible:
            tokens = waiting[at].tokens
            if not budget.within(self.params.infeasible_share, tokens):
                return
            if self._exceeds_pending(pending, tokens, budget.memory):
                return
            if budget.take(waiting[at]):
                pending += tokens
                yield at

    def _bypassing(
        self,
        aged: PreallocationRequest,
        waiting: Sequence[PreallocationRequest],
        takers: Iterator[int],
    ) -> Iterator[int]:
        """Let short prompts bypass an aged one until they have taken as much memory as it needs.

        The memory for a long prompt accumulates over seconds, which short prompts do not have.
        """
        if aged.id != self._reserved_for:
            self._reserved_for, self._bypassed = aged.id, 0
        while self._bypassed < aged.tokens:
            at = next(takers, None)
            if at is None:
                return
            self._bypassed += waiting[at].tokens
            yield at

    def _aged(
        self, waiting: Sequence[PreallocationRequest], memory: DecodeMemory, now_s: float
    ) -> int | None:
        """Return the index of the prompt that aged first if it may be served first.

        A prompt that would not even fit an empty server is left out.
        """
        fitting = (
            i
            for i, prompt in enumerate(waiting)
            if _required_tokens(prompt, memory) <= memory.capacity_tokens
        )
        at = min(fitting, key=lambda i: (self._aged_at_s(waiting[i]), waiting[i].id), default=None)
        if at is None:
            return None
        if self._credit.available:
            return at if now_s > self._aged_at_s(waiting[at]) else None
        waited_s = now_s - waiting[at].requested_s
        pending = _yielding_tokens(memory, now_s)
        exceeds = self._exceeds_pending(pending, waiting[at].tokens, memory)
        return at if waited_s > self.params.engine_timeout_s and not exceeds else None

    def _aged_at_s(self, prompt: PreallocationRequest) -> float:
        """Return when a prompt becomes aged, monotonic seconds."""
        objective_s = max(prompt.deadline_s - prompt.requested_s, 0.0)
        after_s = max(self.params.aged_after * objective_s, self.params.aged_least_s)
        return prompt.requested_s + min(after_s, self.params.aged_s)

    def _has_loose_deadline(self, prompt: PreallocationRequest, now_s: float) -> bool:
        """Return whether a prompt can wait. One that streams already has no deadline and cannot."""
        spare_s = prompt.deadline_s - prompt.min_prefill_s - now_s
        return self.params.loose_deadline_s < spare_s < math.inf

    def _exceeds_pending(self, pending: int, tokens: int, memory: DecodeMemory) -> bool:
        """Return whether one more infeasible prompt would exceed the share of pending memory."""
        most = self.params.infeasible_pending_share * memory.capacity_tokens
        return pending > 0 and pending + tokens > most


def _required_tokens(prompt: PreallocationRequest, memory: DecodeMemory) -> float:
    """Return the free tokens without which a prompt gets no memory."""
    return max(prompt.tokens + memory.reserve_tokens, prompt.required_free_tokens)


def _yielding_tokens(memory: DecodeMemory, now_s: float) -> int:
    """Return the tokens held by infeasible and best-effort prompts that wait for their prefill."""
    return sum(
        prompt.tokens
        for prompt in memory.pending
        if prompt.best_effort or is_infeasible(prompt, now_s)
    )


def _by_request(waiting: Sequence[PreallocationRequest]) -> list[int]:
    """Return the indices of the prompts in the order in which they asked for memory."""
    return sorted(range(len(waiting)), key=lambda i: (waiting[i].requested_s, waiting[i].id))


def _in_order(waiting: Sequence[PreallocationRequest], memory: DecodeMemory) -> list[Grant]:
    """Grant memory in the order of request, up to the first prompt that does not fit."""
    budget = _MemoryBudget(memory._replace(contexts=np.empty(0)), peak_share=1.0)
    fitting = itertools.takewhile(lambda at: budget.take(waiting[at]), _by_request(waiting))
    return [Grant(at, False) for at in fitting]


class _ShorterWork:
    """Work of prefill servers in shorter prompts; queried in ascending order of length.

    Args:
        pending: prompts that hold memory. Infeasible ones count: they are pending because prefill
            is behind. Best-effort ones do not: prefill computes them last.
    """

    def __init__(self, pending: Sequence[PreallocationRequest]) -> None:
        held = (prompt for prompt in pending if not prompt.best_effort)
        self._held = sorted(held, key=lambda prompt: (prompt.tokens, prompt.id), reverse=True)
        self._work_s: dict[str, float] = {}

    def of(self, prompt: PreallocationRequest) -> float:
        """Return the work in prompts shorter than `prompt` for its server, seconds."""
        while self._held and self._held[-1].tokens < prompt.tokens:
            self.add(self._held.pop())
        return self._work_s.get(prompt.prefill_server, 0.0)

    def add(self, prompt: PreallocationRequest) -> None:
        """Count a prompt that was granted memory."""
        self._work_s[prompt.prefill_server] = (
            self._work_s.get(prompt.prefill_server, 0.0) + prompt.min_prefill_s
        )


class _MemoryBudget:
    """The rest of a `DecodeMemory` while it is being granted."""

    def __init__(self, memory: DecodeMemory, peak_share: float) -> None:
        self.memory = memory
        self.used = max(0.0, memory.capacity_tokens - memory.free_tokens)
        self._free = memory.free_tokens
        self._contexts, self._remaining = memory.contexts, memory.remaining
        self._max_peak = peak_share * memory.capacity_tokens
        self._slots = memory.slots
        self._refusals = 0

    def within(self, share: float, tokens: int) -> bool:
        """Return whether at most `share` of the memory is in use with `tokens` more.

        An empty server takes any prompt.
        """
        return self.used + tokens <= share * self.memory.capacity_tokens or self.used <= 0.0

    def take(self, prompt: PreallocationRequest) -> bool:
        """Take memory for a prompt if it fits, now and at the peak."""
        needed = prompt.tokens + self.memory.reserve_tokens
        if self._slots <= 0 or _required_tokens(prompt, self.memory) > self._free:
            return False
        if self._refusals >= MAX_PEAK_REFUSALS:
            return False
        if prompt.expected_output_tokens > 0.0 and len(self._contexts):
            contexts = np.append(self._contexts, float(prompt.tokens))
            remaining = np.append(self._remaining, prompt.expected_output_tokens)
            if peak_tokens(contexts, remaining) > self._max_peak:
                self._refusals += 1
                return False
            self._contexts, self._remaining = contexts, remaining
        self._slots -= 1
        self._free -= needed
        self.used += needed
        return True
