"""Which data-parallel rank of a decode server a request goes to, and when.

A step lasts as long as its slowest rank. A request is therefore bound to a rank as late as
possible: when it can join without making the step longer than the TPOT objectives allow.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kairos.latency.ranks import LockStep, RankLoad
from kairos.latency.table import StepTable
from kairos.policy.slack import SlackParams

Floats = npt.NDArray[np.float64]
STEP_SHARE = 0.99
"""Share of the tightest TPOT objective that a step may take when a request joins."""
AGED_S = 10.0
"""Seconds of waiting after which a request is placed before shorter ones."""
OUTLOOK_STEPS = 512.0
"""Steps over which the attention of ranks is compared."""


class RankState(NamedTuple):
    """One rank, with all requests that are bound to it.

    Attributes:
        load: its batch if all of them run.
        free_tokens: memory for further requests, tokens.
        slots: further requests that it can hold.
        contexts: context of each of its requests, tokens.
        remaining: expected further output of each, tokens; 0 where nothing is known.
    """

    load: RankLoad
    free_tokens: float
    slots: int
    contexts: Floats
    remaining: Floats


class WaitingRequest(NamedTuple):
    """A request that is bound to no rank.

    Attributes:
        context_tokens: its context.
        tpot_s: its TPOT objective, seconds.
        waited_s: time since it could have joined, seconds.
    """

    context_tokens: int
    tpot_s: float
    waited_s: float


class PlacedRequest(NamedTuple):
    """A request that joins now.

    Attributes:
        at: its index among those that wait.
        rank: the rank that it joins.
    """

    at: int
    rank: int


def lock_step_params(params: SlackParams) -> SlackParams:
    """Return the parameters with which one of several ranks selects.

    Admission bounds the step of all ranks already. A rank that shortened its own step a little
    further, or for a new request, would make tokens fewer and the step of the others no shorter.
    """
    return params._replace(min_step_share=1.0, express_tokens=0.0)


def with_request(load: RankLoad, context_tokens: float) -> RankLoad:
    """Return a batch with one more request."""
    return RankLoad(
        load.batch + 1,
        load.context_tokens + context_tokens,
        max(load.longest_tokens, context_tokens),
    )


class _Ranks:
    """The ranks while requests are placed on them."""

    def __init__(self, states: Sequence[RankState], steps: LockStep) -> None:
        self.open = set(range(len(states)))
        self.loads = [state.load for state in states]
        self.attention_s = [steps.attention_s(load) for load in self.loads]
        self.outlook = [outlook_tokens(state) for state in states]
        self._free_tokens = [state.free_tokens for state in states]
        self._slots = [state.slots for state in states]
        self._steps = steps

    def fitting(self, context_tokens: int) -> list[int]:
        """Return the open ranks with memory and a slot for one more request."""
        return [
            at
            for at in sorted(self.open)
            if self._slots[at] > 0 and self._free_tokens[at] >= context_tokens
        ]

    def best(self, fitting: Sequence[int], context_tokens: int) -> tuple[int, float]:
        """Return the rank with which the step stays shortest, and the seconds of that step."""
        slowest_s = max(self.attention_s)
        step_s = {
            at: max(
                slowest_s, self._steps.attention_s(with_request(self.loads[at], context_tokens))
            )
            for at in fitting
        }
        best = min(fitting, key=lambda at: (step_s[at], self.outlook[at]))
        total = sum(load.batch for load in self.loads) + 1
        return best, self._steps.shared_s(total) + step_s[best]

    def add(self, at: int, context_tokens: int) -> None:
        """Place a request on a rank."""
        self.loads[at] = with_request(self.loads[at], context_tokens)
        self.attention_s[at] = self._steps.attention_s(self.loads[at])
        self.outlook[at] += context_tokens
        self._free_tokens[at] -= context_tokens
        self._slots[at] -= 1


def place(
    waiting: Sequence[WaitingRequest],
    states: Sequence[RankState],
    steps: LockStep,
    tightest_s: float,
) -> list[PlacedRequest]:
    """Choose the requests that join now, and their ranks.

    A request goes to the rank with which the step of the slowest rank stays shortest; among equals,
    to the rank with the least attention over the next steps. It waits while the step would become
    longer than the objectives allow. Short contexts come first: most requests then wait least. A
    request that has waited `AGED_S` comes before all others. While the oldest one does not fit, the
    rank with the least outlook takes no other request.

    Args:
        waiting: in order of arrival.
        states: the ranks.
        steps: predicts the duration of a step.
        tightest_s: tightest TPOT objective on any rank, seconds.
    """
    ranks = _Ranks(states, steps)
    reserved = False
    placed = []
    for at in sorted(range(len(waiting)), key=lambda at: _preference(waiting[at], at)):
        context, tpot_s, waited_s = waiting[at]
        fitting = ranks.fitting(context)
        if fitting:
            best, step_s = ranks.best(fitting, context)
            alone = not any(load.batch for load in ranks.loads)
            if alone or step_s <= STEP_SHARE * min(tightest_s, tpot_s):
                placed.append(PlacedRequest(at, best))
                ranks.add(best, context)
                continue
        if waited_s > AGED_S and not reserved:
            reserved = True
            ranks.open.remove(min(ranks.open, key=lambda rank: ranks.outlook[rank]))
    return placed


def _preference(request: WaitingRequest, at: int) -> tuple[bool, int, int]:
    """Return the sort key of a request; smaller keys are placed first."""
    aged = request.waited_s > AGED_S
    return not aged, 0 if aged else request.context_tokens, at


def outlook_tokens(rank: RankState) -> float:
    """Return the mean context that a rank reads over the next `OUTLOOK_STEPS`, tokens."""
    known = np.where(rank.remaining > 0.0, rank.remaining, OUTLOOK_STEPS)
    return float((rank.contexts * np.minimum(known / OUTLOOK_STEPS, 1.0)).sum())


def joins_within(
    waiting: Sequence[WaitingRequest], load: RankLoad, table: StepTable, bound_s: float
) -> list[int]:
    """Return the indices of the requests that may join a rank.

    No request joins past one that has waited `AGED_S` and does not fit.

    Args:
        waiting: the requests that wait on the rank.
        load: all requests of the rank.
        table: step times beside the batches of the other ranks.
        bound_s: longest step, seconds. A step that waits for a slower rank may be longer.
    """
    joining = []
    for at in sorted(range(len(waiting)), key=lambda at: _preference(waiting[at], at)):
        joined = with_request(load, waiting[at].context_tokens)
        floor_s = float(table.floor_s[min(joined.batch, len(table.floor_s) - 1)])
        if load.batch and table.step_s(*joined) > max(bound_s, floor_s):
            if waiting[at].waited_s > AGED_S:
                break
            continue
        joining.append(at)
        load = joined
    return joining
