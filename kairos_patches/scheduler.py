"""`sglang.srt.managers.scheduler`: state of the scheduler and of its requests."""

from typing import Any

from kairos_patches._hook import Hook, Kind, Process


def init(result: None, scheduler: Any, server_args: Any, *args: Any, **kwargs: Any) -> None:
    """Attach Kairos' state; refuse modes that only an `Engine(...)` could still ask for."""
    from sglang.srt.kairos.config import active_config
    from sglang.srt.kairos.state import KairosState
    from sglang.srt.kairos.support import refuse_unsupported

    config = active_config()
    assert config is not None, "the scheduler's hooks are installed only under --kairos"
    refuse_unsupported(server_args)
    scheduler.kairos = KairosState(config, scheduler)
    scheduler.policy.kairos = scheduler.kairos.prefill


def create_generation_req(
    req: Any, scheduler: Any, recv_req: Any, *args: Any, **kwargs: Any
) -> None:
    """Attach its SLO to a new request."""
    scheduler.kairos.admit(req)


def get_internal_state(output: Any, scheduler: Any, recv_req: Any) -> None:
    """Show Kairos' state in /server_info."""
    output.internal_state["kairos"] = scheduler.kairos.snapshot()


HOOKS = [
    Hook(
        module="sglang.srt.managers.scheduler",
        name="Scheduler.__init__",
        kind=Kind.AFTER,
        process=Process.SCHEDULER,
        call=init,
        changes="The scheduler carries a `kairos` state object.",
        why="Nothing else runs once per scheduler, after its role and policy are known.",
        test="test/engine/test_request_slo.py",
    ),
    Hook(
        module="sglang.srt.managers.scheduler",
        name="Scheduler._create_generation_req",
        kind=Kind.AFTER,
        process=Process.SCHEDULER,
        call=create_generation_req,
        changes="Every request carries its SLO and arrival.",
        why="Upstream documents it as the extension point for request-local state.",
        test="test/engine/test_request_slo.py",
    ),
    Hook(
        module="sglang.srt.managers.scheduler",
        name="Scheduler.get_internal_state",
        kind=Kind.AFTER,
        process=Process.SCHEDULER,
        call=get_internal_state,
        changes="/server_info shows a `kairos` object per scheduler.",
        why="Upstream assembles the answer from a fixed list of contributors.",
        test="test/engine/test_request_slo.py",
    ),
]
RELIES_ON = []
