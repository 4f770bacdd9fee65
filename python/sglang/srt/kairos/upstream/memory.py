"""Upstream's memory pools and prefix cache, as Kairos uses them."""

from typing import Protocol


class BaseTokenToKVPoolAllocator(Protocol):
    """`sglang.srt.mem_cache.allocator.base.BaseTokenToKVPoolAllocator`: KV memory, in tokens."""

    @property
    def page_size(self) -> int: ...
    def available_size(self) -> int: ...


class BasePrefixCache(Protocol):
    """`sglang.srt.mem_cache.base_prefix_cache.BasePrefixCache`: the radix cache."""

    def evictable_size(self) -> int: ...


class ReqToTokenPool(Protocol):
    """`sglang.srt.mem_cache.memory_pool.ReqToTokenPool`: one row per request in memory."""

    def available_size(self) -> int: ...


class ReqToMetadataIdxAllocator(Protocol):
    """`sglang.srt.disaggregation.utils.ReqToMetadataIdxAllocator`: buffers of a KV transfer."""

    def available_size(self) -> int: ...
