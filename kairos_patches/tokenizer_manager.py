"""`sglang.srt.managers.tokenizer_manager`: every request on its way to the schedulers."""

from typing import TYPE_CHECKING

from kairos_patches.hook import Hook, HookKind, HookProcess, UpstreamDependency

if TYPE_CHECKING:
    from sglang.srt.kairos.upstream import GenerateReqInput


def generate_request(manager: object, obj: "GenerateReqInput", request: object = None) -> None:
    """Resolve the SLO of a request, and send it to the scheduler in custom_params."""
    from sglang.srt.kairos.http import attach_slo

    attach_slo(obj)


HOOKS = [
    Hook(
        module="sglang.srt.managers.tokenizer_manager",
        name="TokenizerManager.generate_request",
        kind=HookKind.BEFORE,
        process=HookProcess.HTTP,
        call=generate_request,
        changes="Requests of every endpoint and of `Engine` carry their SLO and arrival in "
        "custom_params. An ASGI middleware on upstream's application has read them from headers "
        "and body. It answers 400 to a malformed SLO, and echoes the applied one in a header.",
        why="Every endpoint calls it. The middleware alone could not reach the parsed request, and "
        "here alone a stream's status 200 would precede a 400.",
        test="test/engine/test_request_slo.py",
    ),
]
DEPENDENCIES = [
    UpstreamDependency(
        "sglang.srt.entrypoints.http_server.app",
        "the application of every HTTP endpoint, to which a middleware can be added until it "
        "serves its first request",
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
