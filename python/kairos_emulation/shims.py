"""Call sites in SGLang that assume CUDA or torchvision, made harmless in this process.

Each shim names its call site; all are process-wide and applied before SGLang's modules that use
them are imported.
"""

import functools
import importlib.util
import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any

_TORCHVISION = (
    "torchvision",
    "torchvision.io",
    "torchvision.ops",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.transforms.v2",
    "torchvision.transforms.v2.functional",
)


def apply() -> None:
    """Apply all shims once."""
    # disaggregation.prefill: the page indices of every KV chunk go to a buffer that is pinned
    # without asking the platform.
    _unpin("empty")
    _alias_cuda_events()
    if importlib.util.find_spec("torchvision") is None:
        _stub_torchvision()


def unpin_torch() -> None:
    """Beyond `apply`, for whom pins tensors of every kind: LoRA. Slows the makers of tensors."""
    import torch

    _unpin("tensor")
    _unpin("zeros")
    # To replace a method is what a shim is for; mypy takes it for a mistake.
    torch.Tensor.pin_memory = lambda tensor, *_: tensor  # type: ignore[assignment,method-assign]


def _unpin(maker: str) -> None:
    """Have a function of torch make ordinary tensors where pinned ones are asked for."""
    import torch

    original = getattr(torch, maker)

    # `pin_memory` is taken in order to be dropped.
    @functools.wraps(original)
    def unpinned(*args: Any, pin_memory: bool = False, **kwargs: Any) -> "torch.Tensor":  # noqa: ARG001
        return original(*args, **kwargs)

    setattr(torch, maker, unpinned)


def _alias_cuda_events() -> None:
    # disaggregation.prefill: events of the early send of a cached prefix and of the page indices
    # are torch.cuda's by name. With the emulated accelerator torch.cpu's are virtual by now.
    import torch

    torch.cuda.Event = torch.cpu.Event  # type: ignore[assignment,misc]
    torch.cuda.current_stream = torch.cpu.current_stream  # type: ignore[assignment]


def _stub_torchvision() -> None:
    # Vision processors import torchvision at module level; text models never call it. Transformers
    # must keep seeing that it is absent: its answer is cached before the stub exists.
    from transformers.utils import import_utils

    import_utils.is_torchvision_available()
    import_utils.is_torchvision_v2_available()
    for name in _TORCHVISION:
        module = _Stub(name)
        module.__path__ = []
        module.__spec__ = ModuleSpec(name, None, is_package=True)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    sys.modules["torchvision"].__version__ = "0.0.0"  # type: ignore[attr-defined]


class _Stub(types.ModuleType):
    """Any attribute is an empty class whose attributes are None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        cls = _StubMeta(name, (), {})
        setattr(self, name, cls)
        return cls


class _StubMeta(type):
    def __getattr__(cls, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
