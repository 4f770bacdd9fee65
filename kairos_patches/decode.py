"""Decode servers: who gets memory, who runs in a step, when first tokens are streamed."""

from typing import Any

from kairos_patches.hook import Hook, HookKind, HookProcess, UpstreamDependency

_SCHEDULER = "sglang.srt.managers.scheduler"
_DECODE = "sglang.srt.disaggregation.decode"


def update_running_batch(original: Any, scheduler: Any, batch: Any) -> Any:
    """Select who runs; upstream updates the batch of those."""
    decode = scheduler.kairos.decode
    if decode is None:
        return original(scheduler, batch)
    return decode.batcher.update(original, scheduler, batch)


def run_batch(result: Any, scheduler: Any, batch: Any, *args: Any, **kwargs: Any) -> None:
    """Put the running batch together again once the step is launched."""
    decode = scheduler.kairos.decode
    if decode is not None:
        decode.batcher.launched(scheduler, batch)


def process_batch_result(result: None, scheduler: Any, batch: Any, output: Any) -> None:
    """Measure the step whose tokens have just been streamed; now the next one starts."""
    decode = scheduler.kairos.decode
    if decode is not None and batch.forward_mode.is_decode():
        decode.processed(batch)
        decode.batcher.begun(scheduler)


def get_new_prebuilt_batch(batch: Any, scheduler: Any, running_batch: Any) -> None:
    """Say whose first token is held back, before upstream streams them."""
    decode = scheduler.kairos.decode
    if batch is not None and decode is not None and decode.held is not None:
        decode.held.mark(batch.reqs, scheduler.kairos.clock.now())


def process_batch_result_prebuilt(original: Any, processor: Any, batch: Any) -> None:
    """Stream first tokens, except those held back."""
    from sglang.srt.kairos.decode_held_tokens import process_prebuilt

    process_prebuilt(original, processor, batch)


def update_handshake_waiters(result: None, queue: Any, *args: Any, **kwargs: Any) -> None:
    """Put the prompts that get memory in front of the others."""
    decode = queue.scheduler.kairos.decode
    if decode is not None:
        decode.preallocation.arrange(queue)


def resume_retracted_reqs(original: Any, queue: Any, *args: Any, **kwargs: Any) -> Any:
    """Bring back short ones first: the loop ends at the first that does not fit."""
    decode = queue.scheduler.kairos.decode
    if decode is not None:
        decode.preallocation.arrange_retracted(queue)
    return original(queue, *args, **kwargs)


def process_decode_queue(result: None, scheduler: Any) -> None:
    """Take in prompts whose KV has arrived while retracted requests wait for memory."""
    decode = scheduler.kairos.decode
    if decode is not None:
        decode.preallocation.take_in_transferred()
        decode.batcher.settle(scheduler)


def get_decode_retraction_order(original: Any, reqs: list[Any]) -> list[int]:
    """Keep requests in Kairos' order where it has one for all of them."""
    order: list[int] = original(reqs)
    ranks = [getattr(getattr(req, "kairos", None), "retraction_rank", None) for req in reqs]
    known = [rank for rank in ranks if rank is not None]
    if len(known) < len(reqs):
        return order
    return sorted(order, key=known.__getitem__)


HOOKS = [
    Hook(
        module=_SCHEDULER,
        name="Scheduler.update_running_batch",
        kind=HookKind.AROUND,
        process=HookProcess.SCHEDULER,
        call=update_running_batch,
        changes="On a decode server only the selected requests run in a step; the others sit it "
        "out with their KV.",
        why="Upstream runs every resident in every step; this is where it prepares that.",
        test="test/engine/test_decode_batch.py",
    ),
    Hook(
        module=_SCHEDULER,
        name="Scheduler.run_batch",
        kind=HookKind.AFTER,
        process=HookProcess.SCHEDULER,
        call=run_batch,
        changes="Those who sat out return to the running batch right after the launch.",
        why="Everything between two steps (aborts, retraction, pauses, load) reads the running "
        "batch.",
        test="test/engine/test_decode_batch.py",
    ),
    Hook(
        module=_SCHEDULER,
        name="Scheduler.process_batch_result",
        kind=HookKind.AFTER,
        process=HookProcess.SCHEDULER,
        call=process_batch_result,
        changes="Decode step times are learned. With --kairos-hold, first tokens whose step starts "
        "now are streamed.",
        why="Upstream's own counters keep sums, not steps; under the overlap schedule only the "
        "cadence of results tells what a step took.",
        test="test/engine/test_decode_batch.py",
    ),
    Hook(
        module=_DECODE,
        name="SchedulerDisaggregationDecodeMixin.get_new_prebuilt_batch",
        kind=HookKind.AFTER,
        process=HookProcess.SCHEDULER,
        call=get_new_prebuilt_batch,
        changes="With --kairos-hold, first tokens that may wait are marked.",
        why="The next line of upstream's loop streams them.",
        test="test/engine/test_decode_hold.py",
    ),
    Hook(
        module="sglang.srt.managers.scheduler_components.batch_result_processor",
        name="SchedulerBatchResultProcessor.process_batch_result_prebuilt",
        kind=HookKind.AROUND,
        process=HookProcess.SCHEDULER,
        call=process_batch_result_prebuilt,
        changes="With --kairos-hold, marked first tokens are not streamed yet.",
        why="Upstream streams all of them in one call.",
        test="test/engine/test_decode_hold.py",
    ),
    Hook(
        module=_DECODE,
        name="DecodePreallocQueue._update_handshake_waiters",
        kind=HookKind.AFTER,
        process=HookProcess.SCHEDULER,
        call=update_handshake_waiters,
        changes="Prompts get decode memory feasible ones first, short ones first; one that does "
        "not fit blocks nobody, and those given up get no more than a share.",
        why="The loop behind it goes by position and ends at the first that does not fit; before "
        "it, prompts whose handshake has just ended are not known.",
        test="test/engine/test_decode_preallocation.py",
    ),
    Hook(
        module=_DECODE,
        name="DecodePreallocQueue.resume_retracted_reqs",
        kind=HookKind.AROUND,
        process=HookProcess.SCHEDULER,
        call=resume_retracted_reqs,
        changes="Retracted requests come back short ones first.",
        why="It goes by position and ends at the first that does not fit, and nobody gets memory "
        "before all are back.",
        test="test/unit/sglang_kairos/test_decode_preallocation.py",
    ),
    Hook(
        module=_DECODE,
        name="SchedulerDisaggregationDecodeMixin.process_decode_queue",
        kind=HookKind.AFTER,
        process=HookProcess.SCHEDULER,
        call=process_decode_queue,
        changes="Prompts whose KV has arrived join, and stream their first token, also while "
        "retracted requests wait for memory.",
        why="It returns before it looks at transfers; they need no memory any more.",
        test="test/unit/sglang_kairos/test_decode_preallocation.py",
    ),
    Hook(
        module="sglang.srt.managers.schedule_batch",
        name="ScheduleBatch._get_decode_retraction_order",
        kind=HookKind.AROUND,
        process=HookProcess.SCHEDULER,
        call=get_decode_retraction_order,
        changes="Out of memory, requests that have missed their pace are retracted first, then "
        "those with the most time to spare.",
        why="The policies are a closed choice of two.",
        test="test/unit/sglang_kairos/test_decode_batch.py",
    ),
]
DEPENDENCIES = [
    UpstreamDependency(
        "sglang.srt.managers.schedule_batch.ScheduleBatch.filter_batch",
        "takes a batch apart by positions and rebinds its tensors",
    ),
    UpstreamDependency(
        "sglang.srt.managers.schedule_batch.ScheduleBatch.merge_batch",
        "puts two batches together, the callee's requests first",
    ),
    UpstreamDependency(
        "sglang.srt.managers.schedule_batch.ScheduleBatch.check_decode_mem",
        "whether a step of those at the given positions has memory; evicts cached prefixes for it",
    ),
    UpstreamDependency(
        "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.filter_batch",
        "rebinds its tensors; lists and dictionaries of a copy are its own",
    ),
    UpstreamDependency(
        "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.merge_batch",
        "as filter_batch",
    ),
    UpstreamDependency(
        "sglang.srt.managers.overlap_utils.FutureMap",
        "keeps the last token of a request in its row, not at a position of a batch, so that a "
        "request can sit steps out",
    ),
    UpstreamDependency(
        "sglang.srt.utils.device_timer.DeviceTimer",
        "reports the seconds and the kind of every forward pass to all who ask, in order of launch",
    ),
    UpstreamDependency(
        "sglang.srt.disaggregation.decode.DecodePreallocQueue.pop_preallocated",
        "skips prompts that are not waiting for input, and takes the others in order",
    ),
    UpstreamDependency(
        "sglang.srt.disaggregation.decode.DecodeTransferQueue.pop_transferred",
        "returns the requests whose KV has arrived; they hold their memory",
    ),
    UpstreamDependency(
        "sglang.srt.disaggregation.decode.DecodePreallocQueue._allocatable_token_budgets",
        "tokens that may be preallocated now",
    ),
    UpstreamDependency(
        "sglang.srt.managers.scheduler.Scheduler.can_schedule_lora_req",
        "whether a request's adapter has a slot or would get one; loads nothing unless loading is "
        "overlapped",
    ),
    UpstreamDependency(
        "sglang.srt.disaggregation.decode.SchedulerDisaggregationDecodeMixin."
        "get_next_disagg_decode_batch_to_run",
        "merges transferred requests into the running batch and returns what is to be launched",
    ),
]
