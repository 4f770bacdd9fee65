"""`sglang.srt.managers.scheduler_components.request_receiver`: requests and clock of all ranks."""

from collections.abc import Callable, Sequence

from kairos_patches.current_state import scheduler_state
from kairos_patches.hook import Hook, HookKind, HookProcess, UpstreamDependency


def recv_requests(
    original: Callable[[object, Sequence[object] | None], list[object]],
    receiver: object,
    local_reqs: Sequence[object] | None = None,
) -> list[object]:
    """Send the first rank's clock along with the requests, and do what is due in every pass."""
    return scheduler_state().receive(original, receiver, local_reqs)


HOOKS = [
    Hook(
        module="sglang.srt.managers.scheduler_components.request_receiver",
        name="SchedulerRequestReceiver.recv_requests",
        kind=HookKind.AROUND,
        process=HookProcess.SCHEDULER,
        call=recv_requests,
        changes="With several tensor-parallel ranks, the clock and learned values of the first "
        "rank reach the others with the requests of each pass. With --kairos-telemetry, load, "
        "calibration and slack are published for routers, at most 20 times a second. While "
        "metadata buffers are short, the most urgent prompts leave the handshake first.",
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
