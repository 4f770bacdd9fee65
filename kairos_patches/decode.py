"""Decode servers: memory for prompts, the requests of a step, the time of first tokens."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kairos_patches.current_state import scheduler_state
from kairos_patches.hook import Hook, HookKind, HookProcess, UpstreamDependency

if TYPE_CHECKING:
    from sglang.srt.kairos.upstream import (
        PrebuiltBatch,
        Req,
        ScheduleBatch,
        ScheduledPreallocQueue,
        Scheduler,
        SchedulerBatchResultProcessor,
    )

_SCHEDULER = "sglang.srt.managers.scheduler"
_DECODE = "sglang.srt.disaggregation.decode"


def update_running_batch(
    original: "Callable[[Scheduler, ScheduleBatch], ScheduleBatch | None]",
    scheduler: "Scheduler",
    batch: "ScheduleBatch",
) -> "ScheduleBatch | None":
    """Select the requests of the step, and have upstream update the batch of those."""
    decode = scheduler.kairos.decode
    if decode is None:
        return original(scheduler, batch)
    return decode.batcher.update(original, scheduler, batch)


def process_batch_result_prebuilt(
    original: "Callable[[SchedulerBatchResultProcessor, PrebuiltBatch], None]",
    processor: "SchedulerBatchResultProcessor",
    batch: "PrebuiltBatch",
) -> None:
    """Stream first tokens, except those held back."""
    state = scheduler_state()
    held = None if state.decode is None else state.decode.held
    if held is None:
        original(processor, batch)
    else:
        held.process_prebuilt(lambda part: original(processor, part), batch, state.clock.now())


def update_handshake_waiters(
    result: None, queue: "ScheduledPreallocQueue", *args: object, **kwargs: object
) -> None:
    """Put the prompts that get memory in front of the others."""
    decode = queue.scheduler.kairos.decode
    if decode is not None:
        decode.preallocation.arrange(queue)


def resume_retracted_reqs(
    original: "Callable[..., list[Req]]",
    queue: "ScheduledPreallocQueue",
    *args: object,
    **kwargs: object,
) -> "list[Req]":
    """Resume short requests first, and take in transferred prompts while others are retracted."""
    decode = queue.scheduler.kairos.decode
    if decode is None:
        return original(queue, *args, **kwargs)
    decode.preallocation.arrange_retracted(queue)
    resumed = original(queue, *args, **kwargs)
    return [*resumed, *decode.preallocation.pop_transferred()]


def get_decode_retraction_order(
    original: "Callable[[Sequence[Req]], list[int]]", reqs: "Sequence[Req]"
) -> list[int]:
    """Keep requests in Kairos' order where it ranks all of them."""
    order = original(reqs)
    ranks: list[int] = []
    for req in reqs:
        request = getattr(req, "kairos", None)
        if request is None or request.retraction_rank is None:
            return order
        ranks.append(request.retraction_rank)
    return sorted(order, key=ranks.__getitem__)


HOOKS = [
    Hook(
        module=_SCHEDULER,
        name="Scheduler.update_running_batch",
        kind=HookKind.AROUND,
        process=HookProcess.SCHEDULER,
        call=update_running_batch,
        changes="On a decode server only the selected requests run in a step. The others are "
        "skipped and keep their KV.",
        why="Upstream runs every resident request in every step, and prepares the step here.",
        test="test/engine/test_decode_batch.py",
    ),
    Hook(
        module="sglang.srt.managers.scheduler_components.batch_result_processor",
        name="SchedulerBatchResultProcessor.process_batch_result_prebuilt",
        kind=HookKind.AROUND,
        process=HookProcess.SCHEDULER,
        call=process_batch_result_prebuilt,
        changes="With --kairos-hold, first tokens that may be held back are not streamed yet.",
        why="Upstream streams all first tokens in one call.",
        test="test/engine/test_decode_hold.py",
    ),
    Hook(
        module=_DECODE,
        name="DecodePreallocQueue._update_handshake_waiters",
        kind=HookKind.AFTER,
        process=HookProcess.SCHEDULER,
        call=update_handshake_waiters,
        changes="Feasible prompts get decode memory first, shorter ones before longer ones. A "
        "prompt that does not fit blocks no other prompt. Infeasible prompts get a limited share.",
        why="The loop that follows goes by position and ends at the first prompt that does not "
        "fit. Before this function, prompts whose handshake has just ended are not known.",
        test="test/engine/test_decode_preallocation.py",
    ),
    Hook(
        module=_DECODE,
        name="DecodePreallocQueue.resume_retracted_reqs",
        kind=HookKind.AROUND,
        process=HookProcess.SCHEDULER,
        call=resume_retracted_reqs,
        changes="Retracted requests are resumed in order of length, short ones first. Prompts "
        "whose KV has arrived join the running batch also while retracted requests wait for "
        "memory.",
        why="It goes by position and ends at the first request that does not fit. While it leaves "
        "requests, upstream polls no transfers, although these need no further memory.",
        test="test/unit/sglang_kairos/test_decode_preallocation.py",
    ),
    Hook(
        module="sglang.srt.managers.schedule_batch",
        name="ScheduleBatch._get_decode_retraction_order",
        kind=HookKind.AROUND,
        process=HookProcess.SCHEDULER,
        call=get_decode_retraction_order,
        changes="When memory runs out, infeasible requests are retracted first, then those with "
        "the most time to spare.",
        why="Upstream offers two fixed policies.",
        test="test/unit/sglang_kairos/test_decode_batcher.py",
    ),
]
DEPENDENCIES = [
    UpstreamDependency(
        "sglang.srt.managers.schedule_batch.ScheduleBatch.filter_batch",
        "keeps the requests at the given positions and rebinds the tensors of the batch",
    ),
    UpstreamDependency(
        "sglang.srt.managers.schedule_batch.ScheduleBatch.merge_batch",
        "adds the requests of another batch behind those of the batch it is called on",
    ),
    UpstreamDependency(
        "sglang.srt.managers.schedule_batch.ScheduleBatch.check_decode_mem",
        "tells whether a step of the requests at the given positions has memory; evicts cached "
        "prefixes for it",
    ),
    UpstreamDependency(
        "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.filter_batch",
        "rebinds its tensors, and changes lists and dictionaries only of its own object",
    ),
    UpstreamDependency(
        "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.merge_batch",
        "as filter_batch",
    ),
    UpstreamDependency(
        "sglang.srt.managers.overlap_utils.FutureMap",
        "keeps the last token of a request in its row, not at a position of a batch, so that a "
        "request can be skipped",
    ),
    UpstreamDependency(
        "sglang.srt.utils.device_timer.DeviceTimer",
        "reports the seconds and the kind of every forward pass to each reporter, in order of "
        "launch",
    ),
    UpstreamDependency(
        "sglang.srt.disaggregation.decode.DecodePreallocQueue.pop_preallocated",
        "passes over prompts that are not waiting for input, and takes the others in order",
    ),
    UpstreamDependency(
        "sglang.srt.disaggregation.decode.DecodeTransferQueue.pop_transferred",
        "returns the requests whose KV has arrived; they hold their memory",
    ),
    UpstreamDependency(
        "sglang.srt.disaggregation.decode.DecodePreallocQueue._allocatable_token_budgets",
        "counts the tokens that may be preallocated now",
    ),
    UpstreamDependency(
        "sglang.srt.managers.scheduler.Scheduler.can_schedule_lora_req",
        "tells whether a request's adapter has a slot or would get one; loads nothing unless "
        "loading is overlapped",
    ),
    UpstreamDependency(
        "sglang.srt.disaggregation.decode.SchedulerDisaggregationDecodeMixin."
        "get_next_disagg_decode_batch_to_run",
        "merges transferred requests into the running batch and returns the batch to be launched",
    ),
]
