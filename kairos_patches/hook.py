"""Hooks and dependencies, as the tables of this package declare them."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class HookKind(Enum):
    """How a hook relates to the upstream function.

    The values are those of upstream's `HookType`.
    """

    BEFORE = "before"
    AFTER = "after"
    AROUND = "around"


class HookProcess(Enum):
    """The process whose copy of the upstream function is hooked."""

    LAUNCHER = "launcher"  # parses the command line; always hooked, without effect unless --kairos
    HTTP = "http"  # serves requests and tokenizes
    SCHEDULER = "scheduler"  # one per tensor-parallel rank


@dataclass(frozen=True)
class Hook:
    """One seam between upstream SGLang and Kairos.

    Attributes:
        module: upstream module.
        name: function of the module; `Class.method` for a method.
        kind: how `call` relates to the function.
        process: the process whose function is hooked.
        call: the hook; its signature is as upstream's hook registry documents for `kind`.
        changes: difference under --kairos.
        why: reason why no smaller seam suffices.
        test: path of the test that covers the hook.
    """

    module: str
    name: str
    kind: HookKind
    process: HookProcess
    call: Callable[..., object]
    changes: str
    why: str
    test: str

    @property
    def symbol(self) -> str:
        """Full name of the hooked function."""
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class UpstreamDependency:
    """An upstream symbol that Kairos calls or reads without hooking it.

    Attributes:
        symbol: full name.
        why: the property that Kairos relies on.
    """

    symbol: str
    why: str
