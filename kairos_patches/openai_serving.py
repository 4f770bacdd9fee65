"""`sglang.srt.entrypoints.openai.serving_base`: the OpenAI endpoints."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from kairos_patches.hook import Hook, HookKind, HookProcess, UpstreamDependency

if TYPE_CHECKING:
    from fastapi import Request
    from sglang.srt.kairos.upstream import CompletionRequest, OpenAIServingBase


async def handle_request(
    original: "Callable[[OpenAIServingBase, CompletionRequest, Request], Awaitable[object]]",
    serving: "OpenAIServingBase",
    request: "CompletionRequest",
    raw_request: "Request",
) -> object:
    """Resolve the request's SLO; answer 400 to a malformed one."""
    from sglang.srt.kairos.http import serve_openai

    return await serve_openai(original, serving, request, raw_request)


HOOKS = [
    Hook(
        module="sglang.srt.entrypoints.openai.serving_base",
        name="OpenAIServingBase.handle_request",
        kind=HookKind.AROUND,
        process=HookProcess.HTTP,
        call=handle_request,
        changes="/v1/completions and /v1/chat/completions read SLO headers and body fields into "
        "custom_params. They answer 400 to malformed ones, and echo the applied SLO.",
        why="Both endpoints pass through it with the request's headers, and errors are still "
        "mapped to status codes.",
        test="test/engine/test_request_slo.py",
    ),
]
DEPENDENCIES = [
    UpstreamDependency(
        "sglang.srt.utils.json_response.model_json_response",
        "serializes a plain answer as upstream's routes do, so that it can carry the echo header",
    ),
    UpstreamDependency(
        "sglang.srt.entrypoints.openai.protocol.ChatCompletionRequest.to_sampling_params",
        "carries custom_params of a chat request into its sampling parameters",
    ),
    UpstreamDependency(
        "sglang.srt.entrypoints.openai.serving_completions.OpenAIServingCompletion."
        "_build_sampling_params",
        "carries custom_params of a completion request into its sampling parameters",
    ),
]
