"""Hooks as decorators, for a copy of SGLang with the patches of `kairos upstream-diff --export`."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import kairos_patches

P = ParamSpec("P")
R = TypeVar("R")


def hookable(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate an upstream function that Kairos hooks.

    It is upstream's until the process installs Kairos' hooks, as it does under --kairos.

    Raises:
        KeyError: no hook has this function's name.
    """
    from sglang.srt.plugins.hook_registry import HookType, _wrap_fn

    symbol = f"{function.__module__}.{function.__qualname__}"
    hook = {hook.symbol: hook for hook in kairos_patches.HOOKS}[symbol]
    hooked: Callable[P, R] = _wrap_fn(function, hook.call, HookType(hook.kind.value))
    kairos_patches.decorated.add(symbol)

    @functools.wraps(function)
    def upstream_or_hooked(*args: P.args, **kwargs: P.kwargs) -> R:
        installed = hook.process in kairos_patches.installed
        return hooked(*args, **kwargs) if installed else function(*args, **kwargs)

    return upstream_or_hooked
