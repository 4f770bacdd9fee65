"""Hooks into upstream SGLang: one module per hooked upstream module.

SGLang's plugin loader calls `activate`. `HOOKS` is the whole difference to upstream.
`manifest.json` records the source of every upstream symbol that Kairos relies on. A server with
--kairos refuses to start when one has changed.
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
    upstream_members,
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
    upstream_members,
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
    """Return the upstream symbols that Kairos relies on.

    Args:
        process: only the symbols hooked in this process; None: all, dependencies included.
    """
    if process is not None:
        return [hook.symbol for hook in HOOKS if hook.process is process]
    return [*(hook.symbol for hook in HOOKS), *(item.symbol for item in DEPENDENCIES)]


def activate() -> None:
    """Apply the hooks of this process, as entry point of the plugin group `sglang.srt.plugins`.

    It runs early in every SGLang process. The launcher gets the flags. A scheduler whose launcher
    saw --kairos gets its hooks. No other process is changed.
    """
    if multiprocessing.parent_process() is None:
        # A drifted upstream must still work as upstream, so --kairos is then not offered.
        if found := drifts(symbols(HookProcess.LAUNCHER), upstream_root()):
            print(f"kairos: not available: {found[0]}", file=sys.stderr)
            return
        install(HookProcess.LAUNCHER)
    # A scheduler process has imported this module by now, to unpickle its entry point.
    if "sglang.srt.managers.scheduler" not in sys.modules:
        return
    try:
        from sglang.srt.kairos.config import active_config

        if active_config() is not None:
            verify()
            install(HookProcess.SCHEDULER)
    except Exception as error:
        # Upstream would log the error and serve without hooks.
        _refuse(str(error))


def verify() -> None:
    """Stop the process unless every upstream symbol that Kairos relies on is as recorded."""
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

    Upstream's `HookRegistry.register` is not used. It only logs a failure, after which the server
    would serve without the hook, and it skips a target that another plugin has hooked already.
    """
    if process in _installed:
        return
    _installed.add(process)
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for hook in HOOKS:
        if hook.process is not process:
            continue
        try:
            # Upstream resolves names by attribute, which would hide the reason of a failed import.
            importlib.import_module(hook.module)
            HookRegistry._apply_target(hook.symbol, [(HookType(hook.kind.value), hook.call, None)])
        except Exception as error:
            _refuse(f"the hook on {hook.symbol} did not apply: {error}")


def _refuse(reason: str) -> None:
    # Upstream's plugin loader catches and logs every Exception, but not SystemExit.
    print(f"kairos: error: {reason}", file=sys.stderr, flush=True)
    raise SystemExit(1)
