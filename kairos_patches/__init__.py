"""Hooks into upstream SGLang: one module per hooked upstream module.

SGLang's plugin loader calls `activate`. `HOOKS` is the whole difference to upstream.
`manifest.json` records the source of every upstream symbol that Kairos relies on. A server with
--kairos refuses to start when one has changed.
"""

import importlib
import inspect
import multiprocessing
import pkgutil
import sys
from contextlib import suppress

from kairos_patches import (
    decode,
    dp_attn,
    prefill,
    request_receiver,
    schedule_policy,
    scheduler,
    server_args,
    tokenizer_manager,
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
    "verify_applied",
]

_MODULES = (
    server_args,
    tokenizer_manager,
    request_receiver,
    scheduler,
    schedule_policy,
    prefill,
    decode,
    dp_attn,
    upstream_members,
)
HOOKS: list[Hook] = [hook for module in _MODULES for hook in module.HOOKS]
DEPENDENCIES: list[UpstreamDependency] = [
    *(item for module in _MODULES for item in module.DEPENDENCIES),
    UpstreamDependency(
        "sglang.srt.plugins.hook_registry.HookRegistry._apply_target",
        "wraps one function, keeping class and static methods what they are",
    ),
    UpstreamDependency(
        "sglang.srt.plugins.hook_registry._wrap_fn",
        "wraps a function that a copy of SGLang with Kairos' patches decorates",
    ),
]
_HTTP_SERVER = "sglang.srt.entrypoints.http_server"
_LOADS = {
    HookProcess.HTTP: "sglang.srt.managers.tokenizer_manager",
    HookProcess.SCHEDULER: "sglang.srt.managers.scheduler",
}
installed: set[HookProcess] = set()
"""Processes whose hooks this one has."""
decorated: set[str] = set()
"""Hooked symbols that `kairos_patches.vendored.hookable` decorates in a patched copy of SGLang."""
# What each hooked symbol was set to.
_applied: dict[str, object] = {}


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

    It runs early in every SGLang process. The launcher gets the flags. Under --kairos, a process
    that has loaded the tokenizer manager or the scheduler gets their hooks.
    """
    if multiprocessing.parent_process() is None:
        # A drifted upstream must still work as upstream, so --kairos is then not offered.
        if found := drifts(symbols(HookProcess.LAUNCHER), upstream_root()):
            print(f"kairos: not available: {found[0]}", file=sys.stderr)
            return
        install(HookProcess.LAUNCHER)
    # A scheduler process has imported its module by now, to unpickle its entry point. So has a
    # process that serves HTTP without a command line (`launch_server(ServerArgs(...))`, `Engine`).
    loaded = [process for process, module in _LOADS.items() if module in sys.modules]
    if not loaded:
        return
    try:
        from sglang.srt.kairos.config import active_config

        if active_config() is not None:
            verify()
            for process in loaded:
                install(process)
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
    if process in installed:
        return
    installed.add(process)
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for hook in HOOKS:
        if hook.process is not process:
            continue
        try:
            # Upstream resolves names by attribute, which would hide the reason of a failed import.
            importlib.import_module(hook.module)
            if hook.symbol not in decorated:
                entry = (HookType(hook.kind.value), hook.call, None)
                HookRegistry._apply_target(hook.symbol, [entry])
            _applied[hook.symbol] = _function(hook.symbol)
        except Exception as error:
            _refuse(f"the hook on {hook.symbol} did not apply: {error}")
    if process is HookProcess.HTTP and _HTTP_SERVER in sys.modules:
        _add_middleware()


def verify_applied() -> None:
    """Stop the process unless every hook is still in place.

    Upstream applies the hooks of other plugins after these. One that replaces a function drops the
    hook on it without a word; one that wraps the function keeps it.
    """
    for symbol, applied in _applied.items():
        if not _calls(_function(symbol), applied):
            _refuse(
                f"another plugin has replaced {symbol}, which Kairos hooks. Remove that plugin "
                "(SGLANG_PLUGINS names those that are loaded) or start without --kairos."
            )


def _function(symbol: str) -> object:
    """Return the function behind a symbol, without the descriptor that binds it."""
    owner, _, name = symbol.rpartition(".")
    found = inspect.getattr_static(pkgutil.resolve_name(owner), name)
    return found.__func__ if isinstance(found, classmethod | staticmethod) else found


def _calls(function: object, wanted: object) -> bool:
    """Return whether `function` is `wanted`, or wraps it in closures."""
    seen: list[object] = []
    found = [function]
    while found:
        each = found.pop()
        if each is wanted:
            return True
        if inspect.isfunction(each) and each not in seen:
            seen.append(each)
            for cell in each.__closure__ or ():
                with suppress(ValueError):  # an empty cell
                    found.append(cell.cell_contents)
    return False


def _add_middleware() -> None:
    try:
        from sglang.srt.kairos.http import add_middleware

        add_middleware()
    except Exception as error:
        _refuse(f"the HTTP middleware was not added: {error}")


def _refuse(reason: str) -> None:
    # Upstream's plugin loader catches and logs every Exception, but not SystemExit.
    print(f"kairos: error: {reason}", file=sys.stderr, flush=True)
    raise SystemExit(1)
