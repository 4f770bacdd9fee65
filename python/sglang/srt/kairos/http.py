"""SLOs of HTTP requests: read, validated, handed to the scheduler, echoed in the response."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from fastapi import Request, Response
from fastapi.responses import ORJSONResponse
from sglang.srt.kairos.config import active_config
from sglang.srt.kairos.request_slo import KEY, RequestSlo, requested_in, resolve
from sglang.srt.kairos.upstream import (
    CompletionRequest,
    GenerateReqInput,
    OpenAIServingBase,
    SamplingFields,
)
from sglang.srt.utils.json_response import model_json_response

from kairos.errors import InputError
from kairos.slo import APPLIED_HEADER, SloClasses, SloRequest, from_headers, from_mapping


async def serve_generate(
    original: Callable[[GenerateReqInput, Request], Awaitable[Response]],
    obj: GenerateReqInput,
    request: Request,
) -> Response:
    """Serve `/generate`; a malformed SLO is answered with status 400.

    Args:
        original: upstream's handler.
        obj: its `sampling_params` are one object, or a list of them for a batch.
        request: has headers and body.
    """
    now = time.monotonic()
    given = obj.sampling_params
    sampling = given if isinstance(given, list) else [given]
    try:
        outer = await _outer_request(request)
        applied = []
        for index, params in enumerate(sampling):
            item = f"[{index}]" if isinstance(given, list) else ""
            where = f"sampling_params{item}.custom_params"
            asked = outer.over(requested_in((params or {}).get("custom_params"), where))
            applied.append(resolve(asked, _classes(), now))
    except InputError as error:
        body = {"message": str(error), "type": "invalid_request_error", "code": 400}
        return ORJSONResponse({"error": {**body, "retryable": False}}, status_code=400)
    filled = [_with_slo(params, slo) for params, slo in zip(sampling, applied, strict=True)]
    obj.sampling_params = filled if isinstance(given, list) else filled[0]
    return _echo(await original(obj, request), applied)


async def serve_openai(
    original: Callable[[OpenAIServingBase, CompletionRequest, Request], Awaitable[object]],
    serving: OpenAIServingBase,
    request: CompletionRequest,
    raw_request: Request,
) -> object:
    """Serve `/v1/completions` and `/v1/chat/completions`; a malformed SLO is answered with 400.

    Args:
        original: upstream's handler.
        serving: upstream's endpoint. Other endpoints than the two have no custom_params.
        request: the parsed body.
        raw_request: has headers and body.
    """
    if not hasattr(request, "custom_params"):
        return await original(serving, request, raw_request)
    now = time.monotonic()
    try:
        outer = await _outer_request(raw_request)
        asked = outer.over(requested_in(request.custom_params, "custom_params"))
        applied = resolve(asked, _classes(), now)
        request.custom_params = {**(request.custom_params or {}), KEY: applied.wire()}
    except InputError as error:
        return serving.create_error_response(str(error), err_type="BadRequest", status_code=400)
    return _echo(await original(serving, request, raw_request), [applied])


def _classes() -> SloClasses:
    config = active_config()
    assert config is not None, "the HTTP hooks are installed only under --kairos"
    return config.classes


async def _outer_request(request: Request) -> SloRequest:
    """Read the headers, then the body's top-level `kairos` object; headers win.

    Starlette caches the parsed body, so reading it again costs nothing.
    """
    headers = from_headers(request.headers.items())
    body = await request.json()
    fields = body.get(KEY) if isinstance(body, Mapping) else None
    return headers if fields is None else headers.over(from_mapping(fields, f"body.{KEY}"))


def _with_slo(params: SamplingFields | None, slo: RequestSlo) -> SamplingFields:
    params = params or {}
    custom = params.get("custom_params")
    fields = custom if isinstance(custom, Mapping) else {}
    return {**params, "custom_params": {**fields, KEY: slo.wire()}}


def _echo(response: object, applied: Sequence[RequestSlo]) -> Response:
    """Add the header with the applied SLO.

    A plain OpenAI answer comes as a model, which upstream's route turns into a response with the
    same function.
    """
    answer: Response = model_json_response(response)
    distinct = {request.slo.header() for request in applied}
    answer.headers[APPLIED_HEADER] = distinct.pop() if len(distinct) == 1 else "mixed"
    return answer
