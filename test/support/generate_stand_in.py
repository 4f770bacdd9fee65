"""A stand-in for SGLang's /generate that can misbehave in several ways."""

import asyncio
import json
from collections.abc import Awaitable, Callable

from aiohttp import web

Behaviour = Callable[["GenerateStandIn", web.Request, web.StreamResponse, dict], Awaitable[None]]


class GenerateStandIn:
    """Answers /generate with the behaviour of each request's index.

    Attributes:
        bodies: bodies received, in order.
        gone: indexes of requests whose client closed the connection.
    """

    def __init__(self) -> None:
        self.bodies: list[dict] = []
        self.behaviours: dict[int, Behaviour] = {}
        self.gone: set[int] = set()
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.bodies.append(body)
        index = int(body["rid"].rpartition("-")[2])
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        try:
            await self.behaviours.get(index, tokens)(self, request, response, body)
        except asyncio.CancelledError:
            self.gone.add(index)
            raise
        return response


def event(count: int, finish: object = None) -> bytes:
    meta = {"completion_tokens": count, "finish_reason": finish, "cached_tokens": 2}
    return b"data: " + json.dumps({"output_ids": [5], "meta_info": meta}).encode() + b"\n\n"


async def tokens(
    _engine: GenerateStandIn, request: web.Request, response: web.StreamResponse, body: dict
) -> None:
    await response.prepare(request)
    count = body["sampling_params"]["max_new_tokens"]
    for i in range(1, count + 1):
        await response.write(event(i, {"type": "length"} if i == count else None))
    await response.write(b"data: [DONE]\n\n")


async def refuse(
    _e: GenerateStandIn, _r: web.Request, response: web.StreamResponse, _b: dict
) -> None:
    raise web.HTTPBadRequest(text='{"error": "ttft_ms: -1 is not allowed"}')


async def hang(
    _e: GenerateStandIn, _r: web.Request, response: web.StreamResponse, _b: dict
) -> None:
    await asyncio.Event().wait()


async def first_then_hang(
    _e: GenerateStandIn, request: web.Request, response: web.StreamResponse, _b: dict
) -> None:
    await response.prepare(request)
    await response.write(event(1))
    await asyncio.Event().wait()


async def break_off(
    _e: GenerateStandIn, request: web.Request, response: web.StreamResponse, _b: dict
) -> None:
    await response.prepare(request)
    await response.write(event(1))
    assert request.transport is not None
    request.transport.abort()


async def stop_early(
    _e: GenerateStandIn, request: web.Request, response: web.StreamResponse, _b: dict
) -> None:
    await response.prepare(request)
    await response.write(event(1) + b"data: [DONE]\n\n")


async def abort(
    _e: GenerateStandIn, request: web.Request, response: web.StreamResponse, _b: dict
) -> None:
    await response.prepare(request)
    reason = {"type": "abort", "message": "KV transfer failed", "status_code": 500}
    await response.write(event(0, reason) + b"data: [DONE]\n\n")


async def error_event(
    _e: GenerateStandIn, request: web.Request, response: web.StreamResponse, _b: dict
) -> None:
    await response.prepare(request)
    await response.write(b'data: {"error": {"message": "too long"}}\n\n')


async def no_stream(
    _e: GenerateStandIn, request: web.Request, response: web.StreamResponse, _b: dict
) -> None:
    await response.prepare(request)
    await response.write(b'{"error": "a router put this here"}')
