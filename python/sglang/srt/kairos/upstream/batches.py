"""Upstream's batches, as Kairos uses them."""

from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
from sglang.srt.kairos.upstream.memory import BasePrefixCache, BaseTokenToKVPoolAllocator
from sglang.srt.kairos.upstream.requests import Req
from sglang.srt.kairos.upstream.sampling import SamplingBatchInfo


class ForwardMode(Protocol):
    """`sglang.srt.model_executor.forward_batch_info.ForwardMode`: kind of a batch."""

    def is_decode(self) -> bool: ...
    def is_mixed(self) -> bool: ...
    def is_extend_without_speculative(self) -> bool: ...


class HostTensor(Protocol):
    """`torch.Tensor`: integers in host memory."""

    def numpy(self) -> npt.NDArray[np.int64]: ...


class ScheduleBatch(Protocol):
    """`sglang.srt.managers.schedule_batch.ScheduleBatch`: requests of one forward pass."""

    @property
    def reqs(self) -> Sequence[Req]: ...
    @property
    def forward_mode(self) -> ForwardMode: ...
    @property
    def forward_iter(self) -> int: ...
    @property
    def launch_ts(self) -> float:
        """Monotonic seconds."""

    @property
    def after_idle_gap(self) -> bool: ...

    # Decode servers.
    sampling_info: SamplingBatchInfo
    batch_is_full: bool

    @property
    def seq_lens_cpu(self) -> HostTensor | None:
        """Tokens of each request, those of a step in flight included.

        It is None under some kinds of speculative decoding, which keep the lengths on the device.
        """

    @property
    def is_prefill_only(self) -> bool: ...
    @property
    def token_to_kv_pool_allocator(self) -> BaseTokenToKVPoolAllocator: ...
    @property
    def tree_cache(self) -> BasePrefixCache: ...
    def is_empty(self) -> bool: ...
    def filter_batch(self, *, keep_indices: list[int] | None = None) -> None: ...
    def merge_batch(self, other: Self, /) -> None: ...
    def check_decode_mem(self, selected_indices: list[int] | None = None, /) -> bool: ...


class PrebuiltBatch(ScheduleBatch, Protocol):
    """`sglang.srt.managers.schedule_batch.ScheduleBatch`: requests whose KV has arrived."""

    reqs: list[Req]
