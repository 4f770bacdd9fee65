"""Upstream's server options and HTTP requests, as Kairos uses them."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fastapi import Response


class ServerArgs(Protocol):
    """`sglang.srt.server_args.ServerArgs`: the options of a server."""

    @property
    def disaggregation_mode(self) -> str: ...
    @property
    def disaggregation_decode_allocation_policy(self) -> str: ...
    @property
    def disaggregation_decode_enable_radix_cache(self) -> bool: ...
    @property
    def disaggregation_decode_host_receive_threshold(self) -> float: ...
    @property
    def retraction_policy(self) -> str: ...
    @property
    def model_path(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def quantization(self) -> str | None: ...
    @property
    def kv_cache_dtype(self) -> str: ...
    @property
    def dp_size(self) -> int: ...
    @property
    def attn_dp_size(self) -> int: ...
    @property
    def pp_size(self) -> int: ...
    @property
    def enable_dp_attention(self) -> bool: ...
    @property
    def enable_pd_role_switch(self) -> bool: ...
    @property
    def encoder_only(self) -> bool: ...
    @property
    def grpc_mode(self) -> bool: ...
    @property
    def grpc_port(self) -> int | None: ...
    @property
    def smg_grpc_mode(self) -> bool: ...
    @property
    def speculative_algorithm(self) -> str | None: ...
    @property
    def tokenizer_worker_num(self) -> int: ...
    @property
    def use_ray(self) -> bool: ...


SamplingFields = dict[str, object]
"""The sampling parameters of one request, before they are parsed."""


class GenerateReqInput(Protocol):
    """`sglang.srt.managers.io_struct.GenerateReqInput`: the body of `/generate`."""

    sampling_params: list[SamplingFields] | SamplingFields | None


class CompletionRequest(Protocol):
    """Bodies of OpenAI endpoints.

    `sglang.srt.entrypoints.openai.protocol.CompletionRequest`,
    `sglang.srt.entrypoints.openai.protocol.ChatCompletionRequest`.
    """

    custom_params: SamplingFields | None


class OpenAIServingBase(Protocol):
    """`sglang.srt.entrypoints.openai.serving_base.OpenAIServingBase`: an OpenAI endpoint."""

    def create_error_response(
        self, message: str, err_type: str, status_code: int
    ) -> "Response": ...


class GetInternalStateReqOutput(Protocol):
    """`sglang.srt.managers.io_struct.GetInternalStateReqOutput`.

    It is a scheduler's part of /server_info.
    """

    @property
    def internal_state(self) -> dict[str, object]: ...
