"""Hooks of the emulation on SGLang's scheduler process.

They cannot be a `sglang.srt.plugins` entry point. `load_plugins` skips the general plugins of any
distribution that offers a platform other than the selected one, and this distribution offers two.
So the platform's activation registers them, just before `load_plugins` applies registered hooks.
"""

import gc
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from kairos_emulation import device, shims
from kairos_emulation.rank_step import RankStep, RankWork
from kairos_emulation.upstream import DpController, GatheredStep, KvSender, SchedulerIdleness

if TYPE_CHECKING:
    import torch

SCHEDULER_MODULE = "sglang.srt.managers.scheduler"
_IDLE_NAP_S = 3e-4
_RANK_NAP_MS = 5  # about a decode step, after which a busy rank passes too
_CONTROLLER_POLL_MS = 500
_GATHER = "sglang.srt.managers.scheduler_components.dp_attn.MLPSyncBatchInfo"
_IS_EXTEND_COLUMN = 3  # of the numbers that upstream gathers


class EmulationHook(NamedTuple):
    """A replacement or an extension of one upstream function.

    Attributes:
        target: dotted path of the upstream function.
        function: called as `kind` says.
        kind: name of a `HookType` of SGLang.
    """

    target: str
    function: Callable[..., object]
    kind: str


def nap_when_waiting(_result: None, scheduler: SchedulerIdleness) -> None:
    """Sleep for a moment where upstream's idle loop yields with sleep(0).

    Upstream yields while requests wait for KV, transfers or peers. That keeps a core busy per
    server, and here the servers share few cores.
    """
    if not scheduler.is_fully_idle():
        time.sleep(_IDLE_NAP_S)


def sleep_when_idle(
    sleep: Callable[[SchedulerIdleness], None], scheduler: SchedulerIdleness
) -> None:
    """Sleep briefly where upstream sleeps for up to a second, if other ranks wait for this one.

    A data-parallel attention rank gathers the others' token counts before every step, so one that
    sleeps holds up all. A request for this rank ends its sleep.

    Args:
        sleep: upstream's method.
        scheduler: its receiver.
    """
    if scheduler.attn_dp_enabled and scheduler.idle_sleeper is not None:
        scheduler.idle_sleeper.poller.poll(_RANK_NAP_MS)
    else:
        sleep(scheduler)


def dispatch_requests(controller: DpController) -> None:
    """Dispatch requests to ranks for ever, as upstream does, which polls without a pause.

    That keeps a core busy per server, and here the servers share few cores.
    """
    from sglang.srt.managers.io_struct import sock_recv

    while True:
        controller.soft_watchdog.feed()
        if controller.recv_from_tokenizer.poll(_CONTROLLER_POLL_MS):
            controller._request_dispatcher(sock_recv(controller.recv_from_tokenizer))


def gather_on_cpu(*_args: object, **_kwargs: object) -> None:
    """Have data-parallel attention gather through torch's CPU collectives."""
    shims.gather_on_cpu()


def unpin_adapters(*_args: object, **_kwargs: object) -> None:
    """Replace pinned memory of LoRA adapters and of their batch descriptions, which is absent."""
    shims.unpin_torch()


def modelled_transfer(
    manager: KvSender, _session_id: str, blocks: list[tuple[int, int, int]]
) -> int:
    """Take the modelled link's time for KV blocks instead of moving them.

    Bootstrap, queues, workers and status messages stay upstream's.

    Args:
        manager: upstream's KV manager.
        blocks: (source address, destination address, bytes).

    Returns:
        0, success.
    """
    token_bytes = sum(manager.kv_args.kv_item_lens) / manager.kv_args.page_size
    device.transfer(round(sum(length for _, _, length in blocks) / token_bytes))
    return 0


def add_free_time(row: "torch.Tensor", *_args: object, **_kwargs: object) -> "torch.Tensor":
    """Append the time at which this rank is free to the numbers that upstream gathers.

    On a GPU a rank that is ready early waits in the first all-to-all. The number travels in
    upstream's own gather, so the emulation needs no collective of its own.

    Returns:
        The row with monotonic nanoseconds as a further number.
    """
    import torch

    free = torch.tensor([round(1e9 * device.current().free_s)], dtype=row.dtype, device=row.device)
    return torch.cat((row, free))


def set_step(_result: None, gathered: GatheredStep, *_args: object, **_kwargs: object) -> None:
    """Tell the accelerator the step of all ranks that its next forward takes part in."""
    extend = gathered.tp0_info_cpu[:, _IS_EXTEND_COLUMN].tolist()
    work = zip(
        map(bool, extend), gathered.global_num_tokens, gathered.global_attention_pairs, strict=True
    )
    free_s = 1e-9 * int(gathered.tp0_info_cpu[:, -1].max())
    device.current().step = RankStep(tuple(RankWork(*rank) for rank in work), free_s)


COMMON: tuple[EmulationHook, ...] = (
    EmulationHook(f"{SCHEDULER_MODULE}.Scheduler.on_idle", nap_when_waiting, "AFTER"),
    EmulationHook(f"{SCHEDULER_MODULE}.Scheduler.maybe_sleep_on_idle", sleep_when_idle, "AROUND"),
    EmulationHook(
        "sglang.srt.managers.data_parallel_controller.DataParallelController.event_loop",
        dispatch_requests,
        "REPLACE",
    ),
    EmulationHook(
        "sglang.srt.layers.dp_attention.initialize_dp_attention", gather_on_cpu, "BEFORE"
    ),
    EmulationHook("sglang.srt.lora.lora_manager.LoRAManager.__init__", unpin_adapters, "BEFORE"),
)
EMULATED: tuple[EmulationHook, ...] = (
    EmulationHook(
        "sglang.srt.disaggregation.mooncake.conn.MooncakeKVManager._transfer_data",
        modelled_transfer,
        "REPLACE",
    ),
    EmulationHook(f"{_GATHER}._get_local_tensor", add_free_time, "AFTER"),
    EmulationHook(f"{_GATHER}._get_fallback_tensor", add_free_time, "AFTER"),
    EmulationHook(f"{_GATHER}.all_gather", set_step, "AFTER"),
)


def install(hooks: tuple[EmulationHook, ...]) -> None:
    """Have `hooks` registered in the scheduler process right before hooks are applied there.

    The first import of SGLang's utilities activates a platform, long before a spawned child has
    its role. Applying a hook imports its target, and only a scheduler process may pay for
    importing the scheduler. That import tells a scheduler process apart.

    Hooks are applied after the bulk of the imports, so garbage collection starts again here. With
    collection on, a sixth of the import time goes into it.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookSource, HookType

    apply_hooks = HookRegistry.apply_hooks
    source = HookSource(os.environ["SGLANG_PLATFORM"], "kairos-emulation-platforms")
    registered = False

    def register_then_apply() -> None:
        nonlocal registered
        gc.enable()
        if not registered and SCHEDULER_MODULE in sys.modules:
            registered = True
            for hook in hooks:
                kind = HookType[hook.kind]
                HookRegistry.register(hook.target, hook.function, kind, source=source)
        apply_hooks()

    HookRegistry.apply_hooks = staticmethod(register_then_apply)


def verify(hooks: tuple[EmulationHook, ...]) -> None:
    """Check that every hook is in place; upstream only logs one that failed.

    Raises:
        RuntimeError: at least one is not; the message names the targets.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry

    missing = [hook.target for hook in hooks if hook.target not in HookRegistry._patched]
    if missing:
        raise RuntimeError(
            f"emulation hooks not applied: {', '.join(missing)}. "
            "The installed SGLang is not the version the emulation was written for."
        )
