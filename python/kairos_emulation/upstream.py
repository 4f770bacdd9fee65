"""Protocols of the SGLang objects that the emulation reads.

Each lists the attributes that are used, and no others. They are types only: at run time SGLang
passes its own classes.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import zmq


class IdleSleeper(Protocol):
    """The part of `IdleSleeper` that is read.

    Attributes:
        poller: polls the sockets of new requests.
    """

    poller: zmq.Poller


class SchedulerIdleness(Protocol):
    """The part of `sglang.srt.managers.scheduler.Scheduler` that the idle hooks ask.

    Attributes:
        attn_dp_enabled: whether it is one of several data-parallel attention ranks.
        idle_sleeper: sleeps until a request comes; None on ranks that receive none.
    """

    attn_dp_enabled: bool
    idle_sleeper: IdleSleeper | None

    def is_fully_idle(self) -> bool:
        """Return whether no request is queued, running or being transferred."""


class GatheredStep(Protocol):
    """The part of `MLPSyncBatchInfo` that is read: what every rank runs in the next step.

    Attributes:
        global_num_tokens: new tokens, by rank.
        global_attention_pairs: pairs of a query and a key that attention computes, by rank.
        tp0_info_cpu: all gathered numbers, [ranks, numbers].
    """

    global_num_tokens: Sequence[int]
    global_attention_pairs: Sequence[int]
    tp0_info_cpu: torch.Tensor


class Watchdog(Protocol):
    """The part of `sglang.srt.utils.watchdog.Watchdog` that is called."""

    def feed(self) -> None:
        """Tell that the process is alive."""


class DpController(Protocol):
    """The part of `DataParallelController` that its replaced loop uses.

    Attributes:
        recv_from_tokenizer: socket of new requests.
        soft_watchdog: to feed in every pass.
        _request_dispatcher: hands a request to a rank.
    """

    recv_from_tokenizer: zmq.Socket[bytes]
    soft_watchdog: Watchdog
    _request_dispatcher: Callable[[object], None]


class KvLayout(Protocol):
    """The part of `sglang.srt.disaggregation.base.conn.KVArgs` that gives the size of a token.

    Attributes:
        kv_item_lens: bytes of one page, by KV buffer.
        page_size: tokens of a page.
    """

    kv_item_lens: Sequence[int]
    page_size: int


class KvSender(Protocol):
    """The part of `MooncakeKVManager` that the transfer hook reads."""

    kv_args: KvLayout


class DeviceModelConfig(Protocol):
    """The part of the emulated model's `config.json` that its class reads.

    Attributes:
        vocab_size: number of token ids.
        output_tokens: first and last id that the model generates.
    """

    vocab_size: int
    output_tokens: tuple[int, int]


class DeviceForwardMode(Protocol):
    """The part of `sglang.srt.model_executor.forward_batch_info.ForwardMode` that is asked."""

    def is_idle(self) -> bool:
        """Return whether the batch is empty: other ranks have work."""

    def is_decode(self) -> bool:
        """Return whether the batch is a decode step."""

    def is_extend(self) -> bool:
        """Return whether the batch is a prefill."""


class ModelBatch(Protocol):
    """The part of `sglang.srt.model_executor.forward_batch_info.ForwardBatch` that is read.

    Attributes:
        forward_mode: decode, prefill or idle.
        seq_lens_cpu: tokens of each request's context, [batch]; decode only.
        extend_prefix_lens_cpu: tokens of each request that have KV already; prefill only.
        extend_seq_lens_cpu: tokens of each request that the batch computes; prefill only.
        rids: request ids.
    """

    forward_mode: DeviceForwardMode
    seq_lens_cpu: torch.Tensor
    extend_prefix_lens_cpu: Sequence[int]
    extend_seq_lens_cpu: Sequence[int]
    rids: Sequence[str] | None
