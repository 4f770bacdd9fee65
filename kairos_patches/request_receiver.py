"""`sglang.srt.managers.scheduler_components.request_receiver`: requests and clock of all ranks."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from kairos_patches.hook import Hook, HookKind, HookProcess, UpstreamDependency

if TYPE_CHECKING:
    from sglang.srt.kairos.shared_clock import SharedClock


def recv_requests(
    original: Callable[[object, Sequence[object] | None], list[object]],
    receiver: object,
    local_reqs: Sequence[object] | None = None,
) -> list[object]:
    """Send the first rank's clock along with the requests, and take it out again."""
    return _clock().receive(original, receiver, local_reqs)


@cache  # an import statement takes microseconds in every pass
def _clock() -> "SharedClock":
    from sglang.srt.kairos.shared_clock import installed

    return installed()


HOOKS = [
    Hook(
        module="sglang.srt.managers.scheduler_components.request_receiver",
        name="SchedulerRequestReceiver.recv_requests",
        kind=HookKind.AROUND,
        process=HookProcess.SCHEDULER,
        call=recv_requests,
        changes="With several tensor-parallel ranks, the clock and learned values of the first "
        "rank reach the others with the requests of each pass.",
        why="It is the only broadcast of every pass, and precedes all decisions of the pass.",
        test="test/engine/test_prefill_ranks.py",
    ),
]
DEPENDENCIES = [
    UpstreamDependency(
        "sglang.srt.managers.scheduler_components.request_receiver.SchedulerRequestReceiver."
        "_broadcast_reqs_across_ranks",
        "sends the additions of the first rank to all ranks that share its waiting queue",
    ),
]
