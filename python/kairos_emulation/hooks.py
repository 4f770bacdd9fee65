"""Hooks of the emulation on SGLang's scheduler process.

They cannot be a `sglang.srt.plugins` entry point: `load_plugins` skips the general plugins of any
distribution that offers a platform other than the selected one, and this one offers two. So the
platform's activation registers them, just before `load_plugins` applies what is registered.
"""

import gc
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from kairos_emulation import device, shims

_SCHEDULER = "sglang.srt.managers.scheduler"
_IDLE_NAP_S = 3e-4


class EmulationHook(NamedTuple):
    """Attributes:
    target: dotted path of the upstream function.
    function: called as `kind` of `HookRegistry` says.
    kind: name of a `HookType`.
    """

    target: str
    function: Callable[..., Any]
    kind: str


def nap_when_waiting(_result: None, scheduler: Any) -> None:
    """Upstream's idle loop yields with sleep(0) while requests wait for KV, transfers or peers.

    That keeps a core busy per server, and here the servers share few cores.
    """
    if not scheduler.is_fully_idle():
        time.sleep(_IDLE_NAP_S)


def unpin_adapters(*_args: Any, **_kwargs: Any) -> None:
    """There is no pinned memory for LoRA adapters and what describes their batches."""
    shims.unpin_torch()


def modelled_transfer(manager: Any, _session_id: str, blocks: list[tuple[int, int, int]]) -> int:
    """KV blocks take the modelled link's time instead of being moved. Returns 0, success.

    Bootstrap, queues, workers and status messages stay upstream's.
    """
    token_bytes = sum(manager.kv_args.kv_item_lens) / manager.kv_args.page_size
    device.transfer(round(sum(length for _, _, length in blocks) / token_bytes))
    return 0


COMMON: tuple[EmulationHook, ...] = (
    EmulationHook(f"{_SCHEDULER}.Scheduler.on_idle", nap_when_waiting, "AFTER"),
    EmulationHook("sglang.srt.lora.lora_manager.LoRAManager.__init__", unpin_adapters, "BEFORE"),
)
EMULATED: tuple[EmulationHook, ...] = (
    EmulationHook(
        "sglang.srt.disaggregation.mooncake.conn.MooncakeKVManager._transfer_data",
        modelled_transfer,
        "REPLACE",
    ),
)


def install(hooks: tuple[EmulationHook, ...]) -> None:
    """Have `hooks` registered in the scheduler process right before hooks are applied there.

    A platform is activated by the first import of SGLang's utilities, long before a spawned child
    knows what it will be. Applying a hook imports its target, and only a scheduler process may
    pay for importing the scheduler; that import is what tells it apart.

    Applying hooks follows the bulk of the imports, so garbage collection starts again here. With
    it on, collections take a sixth of the import time: 1.2 of 7.3 CPU seconds per process.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookSource, HookType

    apply_hooks = HookRegistry.apply_hooks
    source = HookSource(os.environ["SGLANG_PLATFORM"], "kairos-emulation-platforms")
    registered = False

    def register_then_apply() -> None:
        nonlocal registered
        gc.enable()
        if not registered and _SCHEDULER in sys.modules:
            registered = True
            for hook in hooks:
                kind = HookType[hook.kind]
                HookRegistry.register(hook.target, hook.function, kind, source=source)
        apply_hooks()

    HookRegistry.apply_hooks = staticmethod(register_then_apply)


def verify(hooks: tuple[EmulationHook, ...]) -> None:
    """Raise RuntimeError unless every hook is in place: upstream only logs one that failed."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    missing = [hook.target for hook in hooks if hook.target not in HookRegistry._patched]
    if missing:
        raise RuntimeError(
            f"emulation hooks not applied: {', '.join(missing)}. "
            "The installed SGLang is not the version the emulation was written for."
        )
