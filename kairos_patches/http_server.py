"""`sglang.srt.entrypoints.http_server`: the native endpoint."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from kairos_patches.hook import Hook, HookKind, HookProcess, UpstreamDependency

if TYPE_CHECKING:
    from fastapi import Request, Response
    from sglang.srt.kairos.upstream import GenerateReqInput


async def serve_generate_request(
    original: "Callable[[GenerateReqInput, Request], Awaitable[Response]]",
    obj: "GenerateReqInput",
    request: "Request",
) -> "Response":
    """Resolve the request's SLO; answer 400 to a malformed one, streaming or not."""
    from sglang.srt.kairos.http import serve_generate

    return await serve_generate(original, obj, request)


HOOKS = [
    Hook(
        module="sglang.srt.entrypoints.http_server",
        name="serve_generate_request",
        kind=HookKind.AROUND,
        process=HookProcess.HTTP,
        call=serve_generate_request,
        changes="/generate reads SLO headers and body fields into custom_params. It answers 400 to "
        "malformed ones, and echoes the applied SLO in a response header.",
        why="The tokenizer manager runs after a stream's status 200 is sent. Upstream's header "
        "overrides cover neither SLOs nor the OpenAI endpoints.",
        test="test/engine/test_request_slo.py",
    ),
]
DEPENDENCIES: list[UpstreamDependency] = []
