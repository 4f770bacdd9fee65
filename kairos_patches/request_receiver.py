"""`sglang.srt.managers.scheduler_components.request_receiver`: what all ranks hear."""

from functools import cache
from typing import Any

from kairos_patches.hook import Hook, HookKind, HookProcess, UpstreamDependency


def recv_requests(original: Any, receiver: Any, local_reqs: Any = None) -> Any:
    """Send the first rank's clock along, take it out again."""
    return _clock().receive(original, receiver, local_reqs)


@cache  # an import in every pass takes microseconds
def _clock() -> Any:
    from sglang.srt.kairos.shared_clock import installed

    return installed()


HOOKS = [
    Hook(
        module="sglang.srt.managers.scheduler_components.request_receiver",
        name="SchedulerRequestReceiver.recv_requests",
        kind=HookKind.AROUND,
        process=HookProcess.SCHEDULER,
        call=recv_requests,
        changes="With several tensor-parallel ranks, the first one's clock and learned values "
        "reach the others with the requests of each pass.",
        why="The one broadcast that every pass makes, before anything is decided in it.",
        test="test/engine/test_prefill_ranks.py",
    ),
]
DEPENDENCIES = [
    UpstreamDependency(
        "sglang.srt.managers.scheduler_components.request_receiver.SchedulerRequestReceiver."
        "_broadcast_reqs_across_ranks",
        "sends what the first rank adds to all ranks that share its waiting queue",
    ),
]
