"""`sglang.srt.disaggregation.prefill`: the queues and results of a prefill server."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from kairos_patches.hook import Hook, HookKind, HookProcess, UpstreamDependency

if TYPE_CHECKING:
    from sglang.srt.kairos.upstream import ScheduleBatch, Scheduler


def process_batch_result_disagg_prefill(
    original: "Callable[[Scheduler, ScheduleBatch, object], None]",
    scheduler: "Scheduler",
    batch: "ScheduleBatch",
    result: object,
) -> None:
    """Show upstream a preempted prompt as its started one, so that it is not requeued."""
    planner = scheduler.kairos.planner
    if planner is None:
        original(scheduler, batch, result)
    else:
        planner.process_result(lambda: original(scheduler, batch, result), scheduler, batch)


HOOKS = [
    Hook(
        module="sglang.srt.disaggregation.prefill",
        name="SchedulerDisaggregationPrefillMixin.process_batch_result_disagg_prefill",
        kind=HookKind.AROUND,
        process=HookProcess.SCHEDULER,
        call=process_batch_result_disagg_prefill,
        changes="A prompt may be preempted while it still waits for its decode server (optimistic "
        "prefill, allocation after prefill).",
        why="The result handler requeues such a prompt unless it is the scheduler's started "
        "prompt.",
        test="test/engine/test_prefill_modes.py",
    ),
]
DEPENDENCIES = [
    UpstreamDependency(
        "sglang.srt.disaggregation.prefill.PrefillBootstrapQueue.pop_bootstrapped",
        "takes prompts out of the handshake in the order of its queue, as long as there are "
        "metadata buffers",
    ),
    UpstreamDependency(
        "sglang.srt.disaggregation.prefill.SchedulerDisaggregationPrefillMixin."
        "optimistic_release_and_requeue",
        "frees the KV of a preempted prompt when memory is short",
    ),
]
