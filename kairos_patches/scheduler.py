"""`sglang.srt.managers.scheduler`: state of the scheduler and of its requests."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from kairos_patches.hook import Hook, HookKind, HookProcess, UpstreamDependency

if TYPE_CHECKING:
    from sglang.srt.kairos.prefill.batch_forming import FormedBatch
    from sglang.srt.kairos.upstream import (
        AbortReq,
        GetInternalStateReqOutput,
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
    from sglang.srt.kairos.state import KairosState
    from sglang.srt.kairos.support import refuse_unsupported
    from sglang.srt.kairos.telemetry import publisher_for

    from kairos_patches import verify_applied

    verify_applied()
    config = active_config()
    assert config is not None, "the scheduler's hooks are installed only under --kairos"
    refuse_unsupported(server_args, config)
    scheduler.kairos = KairosState(config, scheduler)
    scheduler.policy.kairos = scheduler.kairos
    scheduler.kairos_telemetry = publisher_for(config.telemetry)


def create_generation_req(
    req: "Req", scheduler: "Scheduler", recv_req: object, *args: object, **kwargs: object
) -> None:
    """Attach the SLO of a new request to it."""
    scheduler.kairos.admit(req)


def get_internal_state(
    output: "GetInternalStateReqOutput", scheduler: "Scheduler", recv_req: object
) -> None:
    """Show Kairos' state in /server_info."""
    telemetry = scheduler.kairos_telemetry
    output.internal_state["kairos"] = {
        **scheduler.kairos.snapshot(),
        "telemetry": None if telemetry is None else telemetry.endpoint,
    }


def publish_load_snapshot(result: object, scheduler: "Scheduler", force: bool = False) -> None:
    """Publish the load for routers."""
    if scheduler.kairos_telemetry is not None:
        scheduler.kairos_telemetry.tick(scheduler)


def get_new_batch_prefill_raw(
    original: "Callable[..., FormedBatch]",
    scheduler: "Scheduler",
    *,
    running_batch: object,
    **kwargs: object,
) -> "FormedBatch":
    """Plan the batch, then let upstream form it."""

    def form(running: object) -> "FormedBatch":
        return original(scheduler, running_batch=running, **kwargs)

    planner = scheduler.kairos.planner
    if planner is None:
        return form(running_batch)
    return planner.next_batch(form, scheduler, running_batch)


def should_defer_prefill(
    deferred: bool, scheduler: "Scheduler", running_batch: "ScheduleBatch"
) -> bool:
    """Defer prefill where a decode step is due between two prompts."""
    return deferred or scheduler.kairos.decode_is_due(running_batch, scheduler.last_batch)


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


def record_step_counters(
    output: None, scheduler: "Scheduler", batch: "ScheduleBatch", result: object
) -> None:
    """Measure the batch whose result has just been processed."""
    scheduler.kairos.measured(batch)


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
        name="Scheduler.publish_load_snapshot",
        kind=HookKind.AFTER,
        process=HookProcess.SCHEDULER,
        call=publish_load_snapshot,
        changes="With --kairos-telemetry, load, calibration and slack are published for routers, "
        "at most 20 times a second.",
        why="It runs after every batch and, at bounded intervals, while the scheduler is idle.",
        test="test/unit/sglang_kairos/test_telemetry.py",
    ),
    Hook(
        module="sglang.srt.managers.scheduler",
        name="Scheduler._get_new_batch_prefill_raw",
        kind=HookKind.AROUND,
        process=HookProcess.SCHEDULER,
        call=get_new_batch_prefill_raw,
        changes="A prefill server plans every batch by urgency. A started prompt may be preempted "
        "between its chunks, so that more urgent prompts overtake it.",
        why="Upstream continues the started prompt before it reads the waiting queue.",
        test="test/engine/test_prefill_planner.py",
    ),
    Hook(
        module="sglang.srt.managers.scheduler",
        name="Scheduler._should_defer_prefill",
        kind=HookKind.AFTER,
        process=HookProcess.SCHEDULER,
        call=should_defer_prefill,
        changes="Without disaggregation, running requests get a decode step between prompts once "
        "their TPOT objective has passed without a step.",
        why="Upstream runs every waiting prompt first. Its own interval counts batches, not time.",
        test="test/engine/test_decode_turns.py",
    ),
    Hook(
        module="sglang.srt.managers.scheduler",
        name="Scheduler.abort_request",
        kind=HookKind.AFTER,
        process=HookProcess.SCHEDULER,
        call=abort_request,
        changes="An abort reaches preempted prompts.",
        why="Upstream keeps one started prompt, in one attribute.",
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
        name="Scheduler._record_step_counters",
        kind=HookKind.AFTER,
        process=HookProcess.SCHEDULER,
        call=record_step_counters,
        changes="The duration of every planned batch corrects the latency model. With "
        "--enable-metrics, Kairos' figures appear in /metrics.",
        why="It runs once per batch, right after the result of the batch was processed.",
        test="test/engine/test_prefill_modes.py",
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
