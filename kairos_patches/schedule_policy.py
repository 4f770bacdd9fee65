"""`sglang.srt.managers.schedule_policy`: order of the waiting queue."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from kairos_patches.hook import Hook, HookKind, HookProcess, UpstreamDependency

if TYPE_CHECKING:
    from sglang.srt.kairos.state import KairosState
    from sglang.srt.kairos.upstream import Req, SchedulePolicy


def calc_priority(
    result: None,
    policy: "SchedulePolicy",
    waiting_queue: "list[Req]",
    *args: object,
    **kwargs: object,
) -> None:
    """Reorder the queue that upstream has just ordered, in place, except on decode servers."""
    state: KairosState | None = getattr(policy, "kairos", None)
    if state is not None:
        state.order(waiting_queue, policy)


def shortest_prefill_chunk_limit(
    original: Callable[..., int | None], policy: "SchedulePolicy", *args: object, **kwargs: object
) -> int | None:
    """Leave tokens beside the continued prompt for the prompts that are planned with it."""
    state: KairosState | None = getattr(policy, "kairos", None)
    if state is not None and state.planner is not None:
        return state.planner.forming.continued_limit()
    return original(policy, *args, **kwargs)


def select_prefill_admission(
    original: Callable[..., object],
    adder: object,
    req: "Req",
    *,
    has_chunked_req: bool = False,
    **kwargs: object,
) -> object:
    """Refuse a second unfinished prompt in a batch, which the scheduler cannot track."""
    from sglang.srt.managers.schedule_policy import AddReqResult

    admission = original(adder, req, has_chunked_req=has_chunked_req, **kwargs)
    if has_chunked_req and getattr(admission, "is_chunked", False):
        return AddReqResult.OTHER
    return admission


HOOKS = [
    Hook(
        module="sglang.srt.managers.schedule_policy",
        name="SchedulePolicy.calc_priority",
        kind=HookKind.AFTER,
        process=HookProcess.SCHEDULER,
        call=calc_priority,
        changes="Prefill orders waiting requests by deadline, feasible ones first. With "
        "--enable-priority-scheduling it does so within equal priorities.",
        why="Upstream's policies are a closed enum, validated by name.",
        test="test/unit/sglang_kairos/test_prefill_scheduler.py",
    ),
    Hook(
        module="sglang.srt.managers.schedule_policy",
        name="SchedulePolicy.shortest_prefill_chunk_limit",
        kind=HookKind.AROUND,
        process=HookProcess.SCHEDULER,
        call=shortest_prefill_chunk_limit,
        changes="The continued prompt gets its planned tokens instead of the whole chunk.",
        why="Its result is the only limit between the chunk size and the continued prompt.",
        test="test/engine/test_prefill_planner.py",
    ),
    Hook(
        module="sglang.srt.managers.schedule_policy",
        name="PrefillAdder._select_prefill_admission",
        kind=HookKind.AROUND,
        process=HookProcess.SCHEDULER,
        call=select_prefill_admission,
        changes="A request that does not fit whole beside a continued prompt waits.",
        why="Upstream has this rule for its shortest-prefill-first policy only. Without the rule, "
        "the scheduler stops on an assertion.",
        test="test/engine/test_prefill_planner.py",
    ),
]
DEPENDENCIES = [
    UpstreamDependency(
        "sglang.srt.mem_cache.common.match_kv_cache",
        "finds the cached part of a waiting prompt; before batch forming, upstream does so only "
        "under its cache-aware policies",
    ),
    UpstreamDependency(
        "sglang.srt.managers.schedule_policy.PrefillAdder.add_chunked_req",
        "continues the started prompt by as many tokens as the limit allows",
    ),
]
