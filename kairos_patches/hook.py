"""What a hook is."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any


class HookKind(Enum):
    """How a hook relates to the upstream function; the values are upstream's `HookType`."""

    BEFORE = "before"
    AFTER = "after"
    AROUND = "around"


class HookProcess(Enum):
    """The process whose copy of the upstream function is hooked."""

    LAUNCHER = "launcher"  # parses the command line; hooked always, inert without --kairos
    HTTP = "http"  # serves requests and tokenizes
    SCHEDULER = "scheduler"  # one per tensor-parallel rank


@dataclass(frozen=True)
class Hook:
    """One seam between upstream SGLang and Kairos.

    Attributes:
        module: upstream module.
        name: function in it, `Class.method` for a method.
        kind: how `call` relates to it.
        process: where it is hooked.
        call: signature as upstream's hook registry documents for `kind`.
        changes: what is different under --kairos.
        why: why no smaller seam serves.
        test: the test that covers it.
    """

    module: str
    name: str
    kind: HookKind
    process: HookProcess
    call: Callable[..., Any]
    changes: str
    why: str
    test: str

    @property
    def symbol(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class UpstreamDependency:
    """An upstream symbol that Kairos calls or reads without hooking it."""

    symbol: str
    why: str
