"""Replacements for call sites in SGLang that assume CUDA or torchvision.

Each shim names its call site. All are process-wide, and applied before SGLang's modules that use
them are imported.
"""

import functools
import importlib.util
import sys
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

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
    """Apply every shim that a server without LoRA adapters needs. Call it once."""
    # disaggregation.prefill: the page indices of every KV chunk go to a buffer that is pinned
    # without asking the platform.
    _unpin("empty")
    _alias_cuda_events()
    if importlib.util.find_spec("torchvision") is None:
        _stub_torchvision()


def gather_on_cpu() -> None:
    """Have data-parallel attention use its CPU code. Scheduler processes only: imports are large.

    Upstream takes that code where its own CPU kernels are installed, which these platforms have
    not.
    """
    from sglang.srt.distributed import parallel_state
    from sglang.srt.layers import dp_attention
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
    from sglang.srt.model_executor import forward_batch_info

    # Collectives that are not wrapped for the graphs of a GPU.
    parallel_state._is_cpu = True
    group = parallel_state.GroupCoordinator
    group.all_to_all_single = group._all_to_all_single
    forward_batch_info._is_cpu = True  # token counts are not pinned
    dp_attention.memcpy_func = dp_attention.memcpy_cpu
    # Rows that pad a rank to the largest one read one token, which is discarded.
    TorchNativeAttnBackend.get_cpu_graph_seq_len_fill_value = lambda _backend: 1


def unpin_torch() -> None:
    """Unpin tensors of every kind, beyond `apply`: LoRA pins them. Slows tensor creation."""
    import torch

    _unpin("tensor")
    _unpin("zeros")
    # mypy rejects the replacement of a method; here it is the purpose.
    torch.Tensor.pin_memory = lambda tensor, *_: tensor  # type: ignore[method-assign]


def _unpin(maker: str) -> None:
    """Have a function of torch create ordinary tensors where pinned ones are requested."""
    import torch

    original: Callable[..., torch.Tensor] = getattr(torch, maker)

    @functools.wraps(original)
    def unpinned(
        *args: object,
        pin_memory: bool = False,  # noqa: ARG001  dropping it is the purpose
        **kwargs: object,
    ) -> "torch.Tensor":
        return original(*args, **kwargs)

    setattr(torch, maker, unpinned)


def _alias_cuda_events() -> None:
    # disaggregation.prefill: events of the early send of a cached prefix and of the page indices
    # are torch.cuda's by name. With the emulated accelerator torch.cpu's are virtual by now.
    import torch

    # mypy rejects assignments to classes and functions of a module; here they are the purpose.
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
    # A module has no such attribute until it is set.
    sys.modules["torchvision"].__version__ = "0.0.0"  # type: ignore[attr-defined]


class _Stub(types.ModuleType):
    """Any attribute is an empty class whose attributes are None."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        cls = _StubMeta(name, (), {})
        setattr(self, name, cls)
        return cls


class _StubMeta(type):
    def __getattr__(cls, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
