"""`sglang.srt.managers.scheduler`: state of the scheduler and of its requests."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from kairos_patches.hook import Hook, HookKind, HookProcess, UpstreamDependency

if TYPE_CHECKING:
    from sglang.srt.kairos.prefill.batch_forming import FormedBatch
    from sglang.srt.kairos.upstream import (
        AbortReq,
        GetInternalStateReqOutput,
        PrefillAdder,
        Req,
        ScheduleBatch,
        Scheduler,
        ServerArgs,
    )


def init(
    result: None,
    scheduler: "Scheduler",
    server_args: "ServerArgs",
    *args: object,
    **kwargs: object,
) -> None:
    """Attach Kairos' state, and refuse unsupported modes of an `Engine(...)`."""
    from sglang.srt.kairos.config import active_config
    from sglang.srt.kairos.state import KairosState, install
    from sglang.srt.kairos.support import refuse_unsupported

    from kairos_patches import verify_applied

    verify_applied()
    config = active_config()
    assert config is not None, "the scheduler's hooks are installed only under --kairos"
    refuse_unsupported(server_args, config)
    scheduler.kairos = KairosState(config, scheduler)
    scheduler.policy.kairos = scheduler.kairos
    install(scheduler.kairos)


def create_generation_req(
    req: "Req", scheduler: "Scheduler", recv_req: object, *args: object, **kwargs: object
) -> None:
    """Attach the SLO of a new request to it."""
    scheduler.kairos.admit(req)


def get_internal_state(
    output: "GetInternalStateReqOutput", scheduler: "Scheduler", recv_req: object
) -> None:
    """Show Kairos' state in /server_info."""
    output.internal_state["kairos"] = scheduler.kairos.snapshot()


def get_new_batch_prefill_raw(
    original: "Callable[..., FormedBatch]",
    scheduler: "Scheduler",
    *,
    running_batch: "ScheduleBatch",
    **kwargs: object,
) -> "FormedBatch":
    """Plan the batch and let upstream form it, unless a decode step is due before."""
    if scheduler.kairos.decode_is_due(running_batch, scheduler.last_batch):
        return None, running_batch

    def form(running: object) -> "FormedBatch":
        return original(scheduler, running_batch=running, **kwargs)

    planner = scheduler.kairos.planner
    if planner is None:
        return form(running_batch)
    return planner.next_batch(form, scheduler, running_batch)


def get_prefill_adder_class(
    base: "type[PrefillAdder]", scheduler: "Scheduler"
) -> "type[PrefillAdder]":
    """Put the limits of the planned batch on upstream's adder."""
    planner = scheduler.kairos.planner
    return base if planner is None else planner.forming.adder_class(base)


def process_batch_result(
    original: "Callable[[Scheduler, ScheduleBatch, object], None]",
    scheduler: "Scheduler",
    batch: "ScheduleBatch",
    result: object,
) -> None:
    """Merge the running batch of a launched step, and measure the batch that has ended."""
    scheduler.kairos.process_result(lambda: original(scheduler, batch, result), batch)


def abort_request(result: None, scheduler: "Scheduler", recv_req: "AbortReq") -> None:
    """Abort preempted prompts, too."""
    if scheduler.kairos.planner is not None:
        scheduler.kairos.planner.preempted.abort(recv_req)


def process_pending_chunked_abort(
    original: "Callable[[Scheduler], None]", scheduler: "Scheduler"
) -> None:
    """End aborted preempted prompts where upstream ends its own started prompt."""
    planner = scheduler.kairos.planner
    if planner is None:
        original(scheduler)
    else:
        planner.preempted.process_aborts(lambda: original(scheduler), scheduler)


def collect_inflight_reqs(found: "set[Req]", scheduler: "Scheduler") -> "set[Req]":
    """Add preempted prompts, which a change of weights concerns, too."""
    planner = scheduler.kairos.planner
    return found if planner is None else found | set(planner.preempted.reqs)


def is_fully_idle(idle: bool, scheduler: "Scheduler", *args: object, **kwargs: object) -> bool:
    """Return whether upstream is idle and no prompt is preempted."""
    planner = scheduler.kairos.planner
    return idle and not (planner is not None and planner.preempted.reqs)


HOOKS = [
    Hook(
        module="sglang.srt.managers.scheduler",
        name="Scheduler.__init__",
        kind=HookKind.AFTER,
        process=HookProcess.SCHEDULER,
        call=init,
        changes="The scheduler carries a `kairos` state object.",
        why="It is the one function that runs once per scheduler after its role and policy are "
        "known.",
        test="test/engine/test_request_slo.py",
    ),
    Hook(
        module="sglang.srt.managers.scheduler",
        name="Scheduler._create_generation_req",
        kind=HookKind.AFTER,
        process=HookProcess.SCHEDULER,
        call=create_generation_req,
        changes="Every request carries its SLO and arrival.",
        why="Upstream documents it as the extension point for request-local state.",
        test="test/engine/test_request_slo.py",
    ),
    Hook(
        module="sglang.srt.managers.scheduler",
        name="Scheduler.get_internal_state",
        kind=HookKind.AFTER,
        process=HookProcess.SCHEDULER,
        call=get_internal_state,
        changes="/server_info shows one `kairos` object per scheduler.",
        why="Upstream assembles the answer from a fixed list of contributors.",
        test="test/engine/test_request_slo.py",
    ),
    Hook(
        module="sglang.srt.managers.scheduler",
        name="Scheduler._get_new_batch_prefill_raw",
        kind=HookKind.AROUND,
        process=HookProcess.SCHEDULER,
        call=get_new_batch_prefill_raw,
        changes="A prefill server plans every batch by urgency. A started prompt may be preempted "
        "between its chunks, so that more urgent prompts overtake it. Without disaggregation, "
        "running requests get a decode step between prompts once their TPOT objective has passed "
        "without a step.",
        why="Upstream continues the started prompt before it reads the waiting queue, and runs "
        "every waiting prompt before a decode step.",
        test="test/engine/test_prefill_planner.py",
    ),
    Hook(
        module="sglang.srt.managers.scheduler",
        name="Scheduler.get_prefill_adder_class",
        kind=HookKind.AFTER,
        process=HookProcess.SCHEDULER,
        call=get_prefill_adder_class,
        changes="The continued prompt gets its planned tokens instead of the whole chunk. A prompt "
        "that does not fit whole beside it waits.",
        why="Upstream documents it as the seam for another adder. Its own limits are those of its "
        "shortest-prefill-first policy.",
        test="test/engine/test_prefill_planner.py",
    ),
    Hook(
        module="sglang.srt.managers.scheduler",
        name="Scheduler.process_batch_result",
        kind=HookKind.AROUND,
        process=HookProcess.SCHEDULER,
        call=process_batch_result,
        changes="The duration of every batch corrects the latency models. Skipped requests return "
        "to the running batch before the result is processed. With --kairos-hold, held first "
        "tokens whose step starts now are streamed. With --enable-metrics, Kairos' figures appear "
        "in /metrics.",
        why="It runs once per batch, right after the launch of the next one. Upstream's own "
        "counters keep sums, not steps.",
        test="test/engine/test_decode_batch.py",
    ),
    Hook(
        module="sglang.srt.managers.scheduler",
        name="Scheduler.abort_request",
        kind=HookKind.AFTER,
        process=HookProcess.SCHEDULER,
        call=abort_request,
        changes="An abort reaches preempted prompts.",
        why="Upstream keeps one started prompt, in one attribute. Its waiting queue cannot hold "
        "preempted ones: an abort there frees memory of a chunk that is still in flight, and a "
        "full queue drops requests without freeing theirs.",
        test="test/engine/test_prefill_planner.py",
    ),
    Hook(
        module="sglang.srt.managers.scheduler",
        name="Scheduler.process_pending_chunked_abort",
        kind=HookKind.AROUND,
        process=HookProcess.SCHEDULER,
        call=process_pending_chunked_abort,
        changes="Aborted preempted prompts end where upstream ends its own started prompt.",
        why="Upstream keeps one started prompt, in one attribute.",
        test="test/engine/test_prefill_planner.py",
    ),
    Hook(
        module="sglang.srt.managers.scheduler",
        name="Scheduler.collect_inflight_reqs",
        kind=HookKind.AFTER,
        process=HookProcess.SCHEDULER,
        call=collect_inflight_reqs,
        changes="A change of weights is noted on preempted prompts, too.",
        why="Upstream keeps one started prompt, in one attribute.",
        test="test/engine/test_prefill_modes.py",
    ),
    Hook(
        module="sglang.srt.managers.scheduler",
        name="Scheduler.is_fully_idle",
        kind=HookKind.AFTER,
        process=HookProcess.SCHEDULER,
        call=is_fully_idle,
        changes="A scheduler with preempted prompts does not count as idle, so its cache is not "
        "flushed under them.",
        why="Upstream keeps one started prompt, in one attribute.",
        test="test/engine/test_prefill_planner.py",
    ),
]
DEPENDENCIES = [
    UpstreamDependency(
        "sglang.srt.disaggregation.prefill.SchedulerDisaggregationPrefillMixin."
        "process_prefill_chunk",
        "publishes the KV of the started prompt before a batch is formed, so that this prompt can "
        "be preempted then",
    ),
]
