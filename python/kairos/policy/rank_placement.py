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

Floats = npt.NDArray[np.float64]
STEP_SHARE = 0.97
"""Share of the tightest TPOT objective that a step may take when a request joins."""
AGED_S = 10.0
"""Seconds of waiting after which a request is placed before shorter ones."""


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


def with_request(load: RankLoad, context_tokens: float) -> RankLoad:
    """Return a batch with one more request."""
    return RankLoad(
        load.batch + 1,
        load.context_tokens + context_tokens,
        max(load.longest_tokens, context_tokens),
    )


def place(
    waiting: Sequence[WaitingRequest],
    ranks: Sequence[RankState],
    steps: LockStep,
    tightest_s: float,
    horizon_tokens: float = 128.0,
) -> list[PlacedRequest]:
    """Choose the requests that join now, and their ranks.

    A request goes to the rank with which the step of the slowest rank stays shortest; among equals,
    to the rank with the least attention over the next steps. It waits while the step would
    become longer than the objectives allow, and another request that fits may pass it. Short
    contexts come first: most requests then wait least. A request that has waited `AGED_S` comes
    before all others.

    Args:
        waiting: in order of arrival.
        ranks: the ranks.
        steps: predicts the duration of a step.
        tightest_s: tightest TPOT objective on any rank, seconds.
        horizon_tokens: steps of the outlook.
    """
    loads = [rank.load for rank in ranks]
    attention_s = [steps.attention_s(load) for load in loads]
    outlook = [outlook_tokens(rank, horizon_tokens) for rank in ranks]
    free_tokens = [rank.free_tokens for rank in ranks]
    slots = [rank.slots for rank in ranks]
    placed = []
    for at in sorted(range(len(waiting)), key=lambda at: _preference(waiting[at], at)):
        request = waiting[at]
        context = request.context_tokens
        fitting = [r for r in range(len(ranks)) if slots[r] > 0 and free_tokens[r] >= context]
        if not fitting:
            continue
        slowest_s = max(attention_s)
        joined = {r: steps.attention_s(with_request(loads[r], context)) for r in fitting}
        best = min(fitting, key=lambda r: (max(slowest_s, joined[r]), outlook[r]))
        total = sum(load.batch for load in loads) + 1
        step_s = steps.shared_s(total) + max(slowest_s, joined[best])
        bound_s = STEP_SHARE * min(tightest_s, request.tpot_s)
        if total > 1 and step_s > bound_s:
            continue
        placed.append(PlacedRequest(at, best))
        loads[best] = with_request(loads[best], context)
        attention_s[best] = joined[best]
        outlook[best] += context
        free_tokens[best] -= context
        slots[best] -= 1
    return placed


def _preference(request: WaitingRequest, at: int) -> tuple[bool, int, int]:
    """Return the sort key of a request; smaller keys are placed first."""
    aged = request.waited_s > AGED_S
    return not aged, 0 if aged else request.context_tokens, at


def outlook_tokens(rank: RankState, horizon_tokens: float) -> float:
    """Return the mean context that a rank reads over the next steps, tokens."""
    known = np.where(rank.remaining > 0.0, rank.remaining, horizon_tokens)
    return float((rank.contexts * np.minimum(known / horizon_tokens, 1.0)).sum())


def joins_within(
    contexts: Sequence[int], load: RankLoad, table: StepTable, bound_s: float
) -> list[int]:
    """Return the indices of the requests that may join a rank, in order of preference.

    Args:
        contexts: of the requests that wait on the rank, tokens.
        load: all requests of the rank.
        table: step times beside the batches of the other ranks.
        bound_s: longest step, seconds. A step that waits for a slower rank may be longer.
    """
    joining = []
    for at, context in enumerate(contexts):
        joined = with_request(load, context)
        floor_s = float(table.floor_s[min(joined.batch, len(table.floor_s) - 1)])
        if load.batch and table.step_s(*joined) > max(bound_s, floor_s):
            continue
        joining.append(at)
        load = joined
    return joining
