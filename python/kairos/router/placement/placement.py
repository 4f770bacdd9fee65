"""The choice of a pair for one request."""

from collections.abc import Sequence
from enum import Enum
from math import inf
from typing import NamedTuple, TypeVar

from kairos.router.placement.decode_target import DecodeTarget
from kairos.router.placement.prefill_target import PrefillTarget
from kairos.router.queue.history import Arrivals
from kairos.router.queue.request import QueuedRequest

STEP_OVERRUN = 1.5
"""Decode steps are too long for a request beyond this multiple of its TPOT; up to there a Kairos
engine keeps most of its residents on time by skipping some."""
PATIENCE = 0.5
"""A request waits for shorter steps only while this share of its TTFT is to spare."""
MAX_EXPECTED_MISSES = 0.2
"""A prompt is long if more expected arrivals than this would miss their deadlines behind it."""
STEP_GRAIN = 0.05
"""Predicted steps that differ by less than this share of the TPOT are equally long."""

_Target = TypeVar("_Target", PrefillTarget, DecodeTarget)


class Wait(Enum):
    """The reason why a request is not sent now."""

    BUSY = "no prefill instance runs dry"
    HEAD_OF_LINE = "it would block the last instance that short prompts do not have to wait for"
    CACHE = "an instance that has its prefix is soon free"
    MEMORY = "no decode instance has KV for it"
    STEP = "decode steps are too long, and it can wait"


class Placement(NamedTuple):
    """A chosen pair.

    Attributes:
        cached: tokens expected in the prefill worker's prefix cache.
        work_s: predicted prefill time there, uncalibrated, seconds.
    """

    prefill: PrefillTarget
    decode: DecodeTarget
    cached: int
    work_s: float


class Option(NamedTuple):
    """A prefill worker for one request; durations from now, seconds.

    Attributes:
        done_s: until the request would be done there.
        clear_s: until all work that the worker then holds would be done.
        ready: the worker runs dry unless a request is sent to it.
        cached: tokens expected in its prefix cache.
        work_s: predicted prefill time, uncalibrated.
    """

    instance: PrefillTarget
    done_s: float
    clear_s: float
    ready: bool
    cached: int
    work_s: float


def cached_tokens(entry: QueuedRequest, instance: PrefillTarget) -> int:
    """Return the tokens expected in the cache of `instance`; at least one is left to compute."""
    work = entry.work
    known = instance.cache.match(work.blocks) * work.block_tokens
    return min(known, work.input_tokens - 1)


def untried(workers: Sequence[_Target], entry: QueuedRequest) -> Sequence[_Target]:
    """Return the workers at which no attempt of this request failed; all, if every one failed."""
    if not entry.tried:
        return workers
    return [worker for worker in workers if worker.key not in entry.tried] or workers


def options(
    entry: QueuedRequest,
    instances: Sequence[PrefillTarget],
    now_s: float,
    on_time: bool,
    left_s: float,
) -> list[Option]:
    """Return all prefill workers, the best at the front; ties by key.

    Of the workers where the request would be done within `left_s`, the time until its prefill has
    to end, the one that would be clear first is the best, so that longer prompts on the others are
    not held up.
    """
    found = []
    deadline_s = entry.work.deadline_s if on_time else inf
    for instance in instances:
        cached = cached_tokens(entry, instance)
        work_s = instance.work_s(cached, entry.work.input_tokens)
        own_s = work_s * instance.speed.factor
        ahead_s = instance.ahead_s(now_s, deadline_s, own_s)
        done_s = ahead_s + instance.base_latency_s + own_s
        clear_s = instance.backlog_s(now_s) + own_s
        ready = instance.runs_dry(ahead_s)
        found.append(Option(instance, done_s, clear_s, ready, cached, work_s))
    found.sort(
        key=lambda o: (
            (0, o.clear_s, o.instance.key) if o.done_s <= left_s else (1, o.done_s, o.instance.key)
        )
    )
    return found


class Candidate(NamedTuple):
    """A request that is to be placed.

    Attributes:
        on_time: it is feasible, and overtakes less urgent requests.
        output_tokens: expected output of all its sequences.
        arrivals: the requests that are to be expected; None where those do not matter.
        post_prefill_s: from the end of prefill to the first token, seconds.
        reservation: (id, key): this decode worker takes no other request before that one.
    """

    entry: QueuedRequest
    on_time: bool
    output_tokens: float
    arrivals: Arrivals | None
    post_prefill_s: float
    reservation: tuple[int, str] | None


def choose_placement(
    candidate: Candidate,
    prefill: Sequence[PrefillTarget],
    decode: Sequence[DecodeTarget],
    now_s: float,
) -> Placement | Wait:
    """Choose a pair for one request, or the reason to wait.

    Its decode worker is the one with the shortest steps; of equal ones the one with the most slack,
    then the one with the most memory.
    """
    entry, on_time, arrivals = candidate.entry, candidate.on_time, candidate.arrivals
    tail_s = candidate.post_prefill_s
    work = entry.work
    found = options(entry, prefill, now_s, on_time, work.deadline_s - now_s - tail_s)
    ready = [option for option in found if option.ready]
    if not ready:
        return Wait.BUSY
    chosen = ready[0]
    if arrivals is not None and not leaves_clear(chosen, prefill, arrivals, now_s):
        clear = [option for option in ready[1:] if leaves_clear(option, prefill, arrivals, now_s)]
        if not clear:
            return Wait.HEAD_OF_LINE
        chosen = clear[0]
    if chosen is not found[0] and on_time and chosen.cached < found[0].cached:
        return Wait.CACHE
    found_decode = _shortest_step(candidate, decode, now_s)
    if found_decode is None:
        return Wait.MEMORY
    step_s, roomiest = found_decode
    spare_s = work.deadline_s - now_s - chosen.done_s - tail_s
    too_long = step_s > STEP_OVERRUN * work.slo.tpot_s
    # Waiting shortens the step only where another request is in it.
    if too_long and len(roomiest) and on_time and spare_s > PATIENCE * work.slo.ttft_s:
        return Wait.STEP
    return Placement(chosen.instance, roomiest, chosen.cached, chosen.work_s)


def _shortest_step(
    candidate: Candidate, decode: Sequence[DecodeTarget], now_s: float
) -> tuple[float, DecodeTarget] | None:
    """Return step time, seconds, and decode worker; None where no worker has memory."""
    work, reservation = candidate.entry.work, candidate.reservation
    context = work.input_tokens + candidate.output_tokens / 2.0
    tokens = work.input_tokens + int(candidate.output_tokens)
    able = []
    for worker in decode:
        if reservation and reservation[1] == worker.key and reservation[0] != work.id:
            continue
        if worker.has_room(work.input_tokens + 1, tokens, work.sequences, now_s):
            step_s = worker.step_s(context, work.sequences, now_s) or 0.0
            grains = round(step_s / (STEP_GRAIN * work.slo.tpot_s))
            slack_s, free = worker.slack_s(now_s), worker.free(now_s)
            order = (grains, -slack_s, -free, len(worker), worker.key)
            able.append((order, step_s, worker))
    if not able:
        return None
    _, step_s, worker = min(able, key=lambda one: one[0])
    return step_s, worker


def leaves_clear(
    option: Option, prefill: Sequence[PrefillTarget], arrivals: Arrivals, now_s: float
) -> bool:
    """Whether another worker stays open to short prompts if this one takes the request.

    A worker without preemption is lost to short prompts while it computes a long one. With one of
    several workers kept clear, few short prompts are late, and the long ones take turns.
    """
    instance = option.instance
    if instance.preemptive or not instance.speed.known or len(prefill) < 2:
        return True

    def lost(busy_s: float) -> bool:
        return arrivals.expected_misses(busy_s, now_s) > MAX_EXPECTED_MISSES

    return not lost(option.work_s * instance.speed.factor) or any(
        other.preemptive or not lost(other.backlog_s(now_s))
        for other in prefill
        if other is not instance
    )


def in_turn(
    entry: QueuedRequest,
    binding: str,
    turn: int,
    prefill: Sequence[PrefillTarget],
    decode: Sequence[DecodeTarget],
    now_s: float,
) -> Placement:
    """Choose a pair by a rule for comparison; see `Binding`. Decode memory is not considered."""
    if binding == "round-robin":
        first, second = prefill[turn % len(prefill)], decode[turn % len(decode)]
    else:
        first = min(prefill, key=lambda p: (p.tokens, p.key))
        if binding == "early":
            first = options(entry, prefill, now_s, False, 0.0)[0].instance
        second = min(decode, key=lambda d: (d.reserved, d.key))
    cached = cached_tokens(entry, first)
    return Placement(first, second, cached, first.work_s(cached, entry.work.input_tokens))
