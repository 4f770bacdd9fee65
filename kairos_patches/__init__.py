"""Hooks into upstream SGLang: one module per upstream module, applied by SGLang's plugin loader.

`HOOKS` is the whole difference to upstream. `manifest.json` records the source of every upstream
symbol that Kairos relies on; a server with --kairos refuses to start when one has changed.
"""

import importlib
import multiprocessing
import sys

from kairos_patches import (
    decode,
    http_server,
    openai_serving,
    prefill,
    request_receiver,
    schedule_policy,
    scheduler,
    server_args,
)
from kairos_patches.fingerprint import MissingSymbolError, upstream_root
from kairos_patches.hook import Hook, HookKind, HookProcess, UpstreamDependency
from kairos_patches.manifest import UPSTREAM_VERSION, Drift, drifts

__all__ = [
    "DEPENDENCIES",
    "HOOKS",
    "Hook",
    "HookKind",
    "HookProcess",
    "activate",
    "install",
    "verify",
]

_MODULES = (
    server_args,
    http_server,
    openai_serving,
    request_receiver,
    scheduler,
    schedule_policy,
    prefill,
    decode,
)
HOOKS: list[Hook] = [hook for module in _MODULES for hook in module.HOOKS]
DEPENDENCIES: list[UpstreamDependency] = [
    *(item for module in _MODULES for item in module.DEPENDENCIES),
    UpstreamDependency(
        "sglang.srt.plugins.hook_registry.HookRegistry._apply_target",
        "wraps one function, keeping class and static methods what they are",
    ),
]
_installed: set[HookProcess] = set()


def symbols(process: HookProcess | None = None) -> list[str]:
    """Upstream symbols relied on; with `process`, those hooked there."""
    if process is not None:
        return [hook.symbol for hook in HOOKS if hook.process is process]
    return [*(hook.symbol for hook in HOOKS), *(item.symbol for item in DEPENDENCIES)]


def activate() -> None:
    """Entry point of the plugin group `sglang.srt.plugins`; runs early in every SGLang process.

    The launcher gets the flags. A scheduler whose launcher saw --kairos gets its hooks. Every
    other process is left alone.
    """
    if multiprocessing.parent_process() is None:
        # Upstream's own behaviour must survive a drifted upstream: then there is no --kairos.
        if found := drifts(symbols(HookProcess.LAUNCHER), upstream_root()):
            print(f"kairos: not available: {found[0]}", file=sys.stderr)
            return
        install(HookProcess.LAUNCHER)
    # Unpickling its entry point has imported the scheduler module by now, in that process only.
    if "sglang.srt.managers.scheduler" not in sys.modules:
        return
    try:
        from sglang.srt.kairos.config import active_config

        if active_config() is not None:
            verify()
            install(HookProcess.SCHEDULER)
    except Exception as error:
        # Upstream would log it and serve un-hooked.
        _refuse(str(error))


def verify() -> None:
    """Stop the process unless every upstream symbol relied on is as recorded."""
    try:
        found: list[Drift] = drifts(symbols(), upstream_root())
    except (OSError, ValueError, MissingSymbolError) as error:
        _refuse(f"cannot check the upstream symbols: {error}")
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        _refuse(
            f"--kairos needs SGLang {UPSTREAM_VERSION} as released, but {found[0]}{more}. "
            "Reinstall sglang or start without --kairos."
        )


def install(process: HookProcess) -> None:
    """Apply the hooks of `process` now, and stop the process if one does not apply.

    Not by upstream's `HookRegistry.register`: the registry only logs a failure, after which the
    server would serve un-hooked, and it skips a target that another plugin has hooked already.
    """
    if process in _installed:
        return
    _installed.add(process)
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for hook in HOOKS:
        if hook.process is not process:
            continue
        try:
            # Upstream resolves names by attribute and would hide why an import failed.
            importlib.import_module(hook.module)
            HookRegistry._apply_target(hook.symbol, [(HookType(hook.kind.value), hook.call, None)])
        except Exception as error:
            _refuse(f"the hook on {hook.symbol} did not apply: {error}")


def _refuse(reason: str) -> None:
    # SystemExit, because upstream's plugin loader catches and logs every Exception.
    print(f"kairos: error: {reason}", file=sys.stderr, flush=True)
    raise SystemExit(1)
