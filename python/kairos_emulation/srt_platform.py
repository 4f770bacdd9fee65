"""The platform classes that SGLang instantiates; imported only after one is selected."""

from typing import TYPE_CHECKING

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform

from kairos_emulation import device, hooks

if TYPE_CHECKING:
    import torch


# SGLang is not typed, so its classes are Any to mypy; a platform has to be one of them.
class CpuPlatform(CpuDeviceMixin, SRTPlatform):  # type: ignore[misc]
    """CPU through torch's own operators: no sgl_kernel, no Triton, no graphs.

    Attributes:
        expected_hooks: hooks without which the server must not start.
    """

    _enum = PlatformEnum.OOT
    capabilities = PlatformCapabilities()
    expected_hooks = hooks.COMMON

    def get_default_attention_backend(self) -> str:
        """Return the name of an attention backend that needs no kernels of its own."""
        return "torch_native"

    def is_pin_memory_available(self, device: "torch.device | None" = None) -> bool:
        """Return False: there is no device to pin memory for."""
        return False

    def post_load_model(self, model: "torch.nn.Module") -> None:
        """Verify the hooks; SGLang calls this in every scheduler process once its model is built.

        Raises:
            RuntimeError: a hook is not in place.
        """
        hooks.verify(self.expected_hooks)


class EmulatedPlatform(CpuPlatform):
    """CPU as the host of an accelerator that exists only as a timeline."""

    expected_hooks = hooks.COMMON + hooks.EMULATED

    def post_load_model(self, model: "torch.nn.Module") -> None:
        """Verify the hooks, and start the accelerator with the server's role and schedule.

        Raises:
            RuntimeError: a hook is not in place.
            InputError: the trace cannot be written.
        """
        from sglang.srt.runtime_context import get_disagg, get_parallel, get_schedule

        super().post_load_model(model)
        device.start(
            role=get_disagg().disaggregation_mode,
            # Without overlap the scheduler reads the sampled tokens right after the launch and
            # waits on no event. On a GPU it would block in that read.
            blocking=get_schedule().disable_overlap_schedule,
            rank=get_parallel().attn_dp_rank,
            ranks=get_parallel().attn_dp_size,
        )
