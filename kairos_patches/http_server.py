"""`sglang.srt.entrypoints.http_server`: the native endpoint."""

from typing import Any

from kairos_patches.hook import Hook, HookKind, HookProcess, UpstreamDependency


async def serve_generate_request(original: Any, obj: Any, request: Any) -> Any:
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
        changes="/generate reads SLO headers and body fields into custom_params, answers 400 to "
        "malformed ones and echoes the applied SLO in a response header.",
        why="The tokenizer manager sees no errors before a stream's 200 is sent, and upstream's "
        "header overrides cover neither SLOs nor the OpenAI endpoints.",
        test="test/engine/test_request_slo.py",
    ),
]
DEPENDENCIES: list[UpstreamDependency] = []
