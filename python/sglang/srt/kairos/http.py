"""SLOs at the HTTP door: read, validated, handed to the scheduler, echoed in the response."""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import Request, Response
from fastapi.responses import ORJSONResponse
from sglang.srt.kairos.config import active_config
from sglang.srt.kairos.request_slo import KEY, RequestSlo, asked_in, resolve
from sglang.srt.utils.json_response import model_json_response

from kairos.errors import InputError
from kairos.slo import APPLIED_HEADER, SloClasses, SloRequest, from_headers, from_mapping


async def serve_generate(
    original: Callable[..., Awaitable[Response]], obj: Any, request: Request
) -> Response:
    """`/generate`: `sampling_params` is one object, or a list of them for a batch."""
    now = time.monotonic()
    batch = isinstance(obj.sampling_params, list)
    sampling = obj.sampling_params if batch else [obj.sampling_params]
    try:
        outer = await _outer_request(request)
        applied = []
        for index, params in enumerate(sampling):
            where = f"sampling_params{f'[{index}]' if batch else ''}.custom_params"
            asked = outer.over(asked_in((params or {}).get("custom_params"), where))
            applied.append(resolve(asked, _classes(), now))
    except InputError as error:
        body = {"message": str(error), "type": "invalid_request_error", "code": 400}
        return ORJSONResponse({"error": {**body, "retryable": False}}, status_code=400)
    filled = [_with_slo(params, slo) for params, slo in zip(sampling, applied, strict=True)]
    obj.sampling_params = filled if batch else filled[0]
    return _echo(await original(obj, request), applied)


async def serve_openai(
    original: Callable[..., Awaitable[Any]], serving: Any, request: Any, raw_request: Request
) -> Any:
    """`/v1/completions` and `/v1/chat/completions`; other OpenAI endpoints generate nothing."""
    if not hasattr(request, "custom_params"):
        return await original(serving, request, raw_request)
    now = time.monotonic()
    try:
        outer = await _outer_request(raw_request)
        applied = resolve(
            outer.over(asked_in(request.custom_params, "custom_params")), _classes(), now
        )
        request.custom_params = {**(request.custom_params or {}), KEY: applied.wire()}
    except InputError as error:
        return serving.create_error_response(str(error), err_type="BadRequest", status_code=400)
    return _echo(await original(serving, request, raw_request), [applied])


def _classes() -> SloClasses:
    config = active_config()
    assert config is not None, "the HTTP hooks are installed only under --kairos"
    return config.classes


async def _outer_request(request: Request) -> SloRequest:
    """Headers first, then the body's top-level `kairos` object. The parsed body is cached by
    Starlette, so reading it again costs nothing."""
    headers = from_headers(request.headers.items())
    body = await request.json()
    fields = body.get(KEY) if isinstance(body, Mapping) else None
    return headers if fields is None else headers.over(from_mapping(fields, f"body.{KEY}"))


def _with_slo(params: dict[str, Any] | None, slo: RequestSlo) -> dict[str, Any]:
    params = params or {}
    custom = params.get("custom_params") or {}
    return {**params, "custom_params": {**custom, KEY: slo.wire()}}


def _echo(response: Any, applied: list[RequestSlo]) -> Response:
    """Add the header with the applied SLO. A plain OpenAI answer comes as a model, which upstream's
    route turns into a response with the same function."""
    answer: Response = model_json_response(response)
    distinct = {request.slo.header() for request in applied}
    answer.headers[APPLIED_HEADER] = distinct.pop() if len(distinct) == 1 else "mixed"
    return answer
