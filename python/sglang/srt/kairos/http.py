"""SLOs of HTTP requests: read, validated, handed to the scheduler, echoed in the response.

`SloMiddleware` reads the headers and the body before any endpoint does, so that a malformed SLO is
answered with status 400 even where the response is a stream. `attach_slo` runs where every endpoint
hands its parsed request to the tokenizer. A context variable connects the two.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import orjson
from sglang.srt.kairos.config import active_config
from sglang.srt.kairos.request_slo import KEY, RequestSlo, requested_in, resolve
from sglang.srt.kairos.upstream import GenerateReqInput, SamplingFields
from starlette.responses import Response

from kairos.errors import InputError
from kairos.slo import APPLIED_HEADER, SloRequest, from_headers, from_mapping

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

# A body without these bytes states no SLO, so it is not parsed a second time.
_KEY_IN_JSON = f'"{KEY}"'.encode()
_STREAMS = (b"text/event-stream", b"application/x-ndjson")


@dataclass(slots=True)
class HttpSlo:
    """The SLO that one HTTP request states.

    Attributes:
        requested: of the headers and of the body's `kairos` object; headers win.
        arrival_s: when the body was complete, monotonic seconds.
        generated: the endpoint has handed a request to the tokenizer.
    """

    requested: SloRequest
    arrival_s: float
    generated: bool = False

    def take(self, now: float) -> tuple[SloRequest, float]:
        """Return the stated SLO and the arrival of the next generation, monotonic seconds.

        An endpoint that calls tools generates several times. Only the first generation has waited
        since the arrival of the HTTP request.
        """
        if self.generated:
            return replace(self.requested, elapsed_ms=0.0), now
        self.generated = True
        return self.requested, self.arrival_s


_stated: ContextVar[HttpSlo | None] = ContextVar("kairos_http_slo", default=None)


def add_middleware() -> None:
    """Add `SloMiddleware` to upstream's application, next to its endpoints.

    There, bodies are decompressed, unauthorized requests have been refused, and answers pass
    upstream's own middleware, which counts them and adds CORS headers.

    Raises:
        RuntimeError: the application has served already.
    """
    from sglang.srt.entrypoints.http_server import app
    from starlette.middleware import Middleware

    if app.middleware_stack is not None:
        raise RuntimeError("the HTTP application has served requests already")
    app.user_middleware.append(Middleware(SloMiddleware))


def attach_slo(obj: GenerateReqInput) -> None:
    """Put the SLO and the arrival of a request into its custom_params.

    Before `TokenizerManager.generate_request`. Outside of an HTTP request (`Engine`, health
    checks), the clock starts now.

    Args:
        obj: its `sampling_params` are one object, or a list of them for a batch.

    Raises:
        InputError: a malformed SLO in the custom_params of an `Engine` call.
    """
    config = active_config()
    if config is None:
        return
    given = obj.sampling_params
    now = time.monotonic()
    stated = _stated.get()
    outer, arrival_s = (SloRequest(), now) if stated is None else stated.take(now)
    applied = [resolve(outer.over(own), config.classes, arrival_s) for own in _own_slos(given)]
    if isinstance(given, list):
        obj.sampling_params = [
            _with_slo(params, slo) for params, slo in zip(given, applied, strict=True)
        ]
    else:
        obj.sampling_params = _with_slo(given, applied[0])


class SloMiddleware:
    """ASGI middleware that reads the SLO of every request with a body."""

    def __init__(self, app: AsgiApp) -> None:
        """Wrap `app`, the router of the endpoints."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection; a malformed SLO is answered with status 400."""
        config = active_config()
        generates = scope["type"] == "http" and scope["method"] in ("POST", "PUT")
        if config is None or not generates:
            await self._app(scope, receive, send)
            return
        body, receive = await _read_json(scope, receive)
        now = time.monotonic()
        try:
            outer = _outer_request(scope, body)
            in_body = _own_slos(body["sampling_params"]) if "sampling_params" in body else []
            in_body = in_body or [requested_in(body.get("custom_params"), "custom_params")]
            applied = [resolve(outer.over(own), config.classes, now) for own in in_body]
        except InputError as error:
            content = orjson.dumps(_error_body(_path(scope), str(error)))
            refusal = Response(content, status_code=400, media_type="application/json")
            await refusal(scope, receive, send)
            return
        stated = HttpSlo(outer, now)
        token = _stated.set(stated)
        try:
            await self._app(scope, receive, _echoing(send, stated, applied))
        finally:
            _stated.reset(token)


async def _read_json(scope: Scope, receive: Receive) -> tuple[Mapping[str, Any], Receive]:
    """Read a JSON body; return it and what replays it to the endpoint.

    The returned object is empty where the body is of another type, is malformed, which the endpoint
    answers, or does not mention an SLO.
    """
    content_type = dict(scope["headers"]).get(b"content-type", b"")
    if content_type and b"json" not in content_type:
        return {}, receive
    parts: list[bytes] = []
    last: Message = {"more_body": True}
    while last.get("more_body"):
        last = await receive()
        parts.append(last.get("body", b""))
    body = b"".join(parts)
    replayed: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    if last["type"] != "http.request":  # the client has disconnected
        replayed = [last]

    async def replay() -> Message:
        return replayed.pop() if replayed else await receive()

    if _KEY_IN_JSON not in body:
        return {}, replay
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}, replay
    return (parsed if isinstance(parsed, Mapping) else {}), replay


def _outer_request(scope: Scope, body: Mapping[str, Any]) -> SloRequest:
    """Return the SLO of the headers, completed by the body's top-level `kairos` object."""
    pairs = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
    headers = from_headers(pairs)
    fields = body.get(KEY)
    return headers if fields is None else headers.over(from_mapping(fields, f"body.{KEY}"))


def _own_slos(sampling_params: object) -> list[SloRequest]:
    """Return the SLO in the custom_params of every request of a batch, or of one request.

    Raises:
        InputError: malformed.
    """
    if isinstance(sampling_params, list):
        return [
            _own_slo(params, f"sampling_params[{index}]")
            for index, params in enumerate(sampling_params)
        ]
    return [_own_slo(sampling_params, "sampling_params")]


def _own_slo(params: object, where: str) -> SloRequest:
    custom = params.get("custom_params") if isinstance(params, Mapping) else None
    return requested_in(custom, f"{where}.custom_params")


def _with_slo(params: SamplingFields | None, slo: RequestSlo) -> SamplingFields:
    params = params or {}
    custom = params.get("custom_params")
    fields = custom if isinstance(custom, Mapping) else {}
    return {**params, "custom_params": {**fields, KEY: slo.wire()}}


def _echoing(send: Send, stated: HttpSlo, applied: Sequence[RequestSlo]) -> Send:
    """Return a `send` that adds the header with the applied SLO to answers that are generated.

    A stream begins before its endpoint hands the request to the tokenizer.
    """
    distinct = {request.slo.header() for request in applied}
    value = distinct.pop() if len(distinct) == 1 else "mixed"

    async def send_with_echo(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message.get("headers", ())
            content_type = dict(headers).get(b"content-type", b"")
            if stated.generated or content_type.startswith(_STREAMS):
                echo = (APPLIED_HEADER.encode(), value.encode("latin-1"))
                message = {**message, "headers": [*headers, echo]}
        await send(message)

    return send_with_echo


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _error_body(path: str, message: str) -> dict[str, object]:
    """Return the body of a 400 in the form of the endpoint's other errors."""
    if path.startswith("/v1/messages"):
        error = {"type": "invalid_request_error", "message": message}
        return {"type": "error", "error": error}
    if path.startswith("/v1/responses"):
        return {"error": {"message": message, "type": "Bad Request", "param": None, "code": 400}}
    if path.startswith("/v1/"):
        fields = {"message": message, "type": "BadRequest", "param": None, "code": 400}
        return {"object": "error", **fields}
    fields = {"message": message, "type": "invalid_request_error", "code": 400}
    return {"error": {**fields, "retryable": False}}
