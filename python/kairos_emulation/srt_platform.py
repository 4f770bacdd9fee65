"""The platform classes that SGLang instantiates. Imported only after one was selected."""

from typing import TYPE_CHECKING

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform

from kairos_emulation import device, hooks

if TYPE_CHECKING:
    import torch


class CpuPlatform(CpuDeviceMixin, SRTPlatform):
    """CPU through torch's own operators: no sgl_kernel, no Triton, no graphs."""

    _enum = PlatformEnum.OOT
    capabilities = PlatformCapabilities()
    expected_hooks = hooks.COMMON

    def get_default_attention_backend(self) -> str:
        return "torch_native"

    def is_pin_memory_available(self, device: "torch.device | None" = None) -> bool:
        return False

    def post_load_model(self, model: "torch.nn.Module") -> None:
        """Runs in every scheduler process once its model is built: the place to fail early."""
        hooks.verify(self.expected_hooks)


class EmulatedPlatform(CpuPlatform):
    """CPU as the host of an accelerator that exists only as a timeline."""

    expected_hooks = hooks.COMMON + hooks.EMULATED

    def post_load_model(self, model: "torch.nn.Module") -> None:
        from sglang.srt.runtime_context import get_disagg, get_schedule

        super().post_load_model(model)
        device.start(
            role=get_disagg().disaggregation_mode,
            # Without overlap the scheduler reads the sampled tokens right after the launch and
            # waits on no event; on a GPU that read is where it would block.
            blocking=get_schedule().disable_overlap_schedule,
        )
