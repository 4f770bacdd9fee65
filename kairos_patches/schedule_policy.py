"""`sglang.srt.managers.schedule_policy`: order of the waiting queue."""

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
]
DEPENDENCIES = [
    UpstreamDependency(
        "sglang.srt.mem_cache.common.match_kv_cache",
        "finds the cached part of a waiting prompt; before batch forming, upstream does so only "
        "under its cache-aware policies",
    ),
    UpstreamDependency(
        "sglang.srt.managers.schedule_policy.PrefillAdder.add_chunked_req",
        "continues the started prompt by as many tokens as `chunked_req_limit` allows, the only "
        "limit beside the chunk size",
    ),
    UpstreamDependency(
        "sglang.srt.managers.schedule_policy.PrefillAdder._select_prefill_admission",
        "tells whether a prompt of the queue fits whole or begins a chunk",
    ),
]
