"""Upstream's batches, as Kairos uses them."""

from collections.abc import Sequence
from typing import Protocol

from sglang.srt.kairos.upstream.requests import Req


class ForwardMode(Protocol):
    """`sglang.srt.model_executor.forward_batch_info.ForwardMode`: kind of a batch."""

    def is_decode(self) -> bool: ...


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
