"""`sglang.srt.managers.schedule_policy`: order of the waiting queue."""

from typing import Any

from kairos_patches._hook import Hook, Kind, Process, Reliance


def calc_priority(
    result: None, policy: Any, waiting_queue: list[Any], *args: Any, **kwargs: Any
) -> None:
    """Reorder the queue that upstream has just ordered, in place. Decode servers keep theirs."""
    prefill = getattr(policy, "kairos", None)
    if prefill is not None:
        prefill.order(waiting_queue, policy)


HOOKS = [
    Hook(
        module="sglang.srt.managers.schedule_policy",
        name="SchedulePolicy.calc_priority",
        kind=Kind.AFTER,
        process=Process.SCHEDULER,
        call=calc_priority,
        changes="Prefill takes waiting requests feasible-first by deadline; with "
        "--enable-priority-scheduling, within equal priorities.",
        why="Policies are a closed enum, validated by name.",
        test="test/engine/test_prefill_order.py",
    ),
]
RELIES_ON = [
    Reliance(
        "sglang.srt.mem_cache.common.match_kv_cache",
        "finds how much of a waiting prompt is cached; upstream matches before batch forming only "
        "under its cache-aware policies",
    ),
]
