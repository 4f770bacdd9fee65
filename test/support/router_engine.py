"""Prefill and decode servers that speak SGLang's protocol, without a model: they start in
milliseconds, in this process, and go wrong on demand.

A transfer needs both legs in one room: the decode server preallocates, then the prefill server
computes, then the KV goes over, then tokens stream. Aborts match by prefix of the rid, and one
that comes before its request is lost, as upstream. A room that comes twice while live is recorded
as a violation, which would have crashed the real servers.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

ROLES = ("prefill", "decode")


@dataclass
class Fault:
    """What goes wrong at one server, until it is taken back.

    Attributes:
        kind: status, not_found, hang, stopped, reset_headers, reset_stream, garbage, drip,
            incomplete, error_event, abort and abort_400 (told in a 200), kv_failure, or dies: the
            server ends as if killed.
        only: prompts that it hits; None for all.
        status: for `status` and `error_event`.
        after: tokens sent before `reset_stream`, `incomplete`, `error_event` and `drip` begin.
        times: requests that it hits; then it is over.
    """

    kind: str
    status: int = 500
    after: int = 2
    times: int = 1_000_000
    only: list[int] | None = None


@dataclass
class Transfer:
    """One room, as both servers see it."""

    preallocated: asyncio.Event = field(default_factory=asyncio.Event)
    sent: asyncio.Event = field(default_factory=asyncio.Event)
    failed: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class World:
    """What the servers of one cluster share: rooms, speed, and what should never happen.

    Attributes:
        flows: tokens beyond the first wait for it.
    """

    prefill_s: float = 0.0
    token_s: float = 0.0
    rooms: dict[int, Transfer] = field(default_factory=dict)
    used: set[int] = field(default_factory=set)
    violations: list[str] = field(default_factory=list)
    flows: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.flows.set()

    def room(self, room: int) -> Transfer:
        return self.rooms.setdefault(room, Transfer())


class Engine:
    """One server.

    Attributes:
        running: rid -> task, of what it works on.
        seen: bodies of the generations it got.
        aborted: rids that an abort hit.
        abort_s: that it takes to answer an abort.
        most_aborting: aborts that were in flight at once.
    """

    def __init__(self, role: str, world: World) -> None:
        self.role = role
        self.world = world
        self.port = 0
        self.bootstrap_port = 1 if role == "prefill" else None
        self.fault: Fault | None = None
        self.running: dict[str, asyncio.Task[Any]] = {}
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.aborted: list[str] = []
        self.aborts = 0
        self.abort_s = 0.0
        self.aborting = 0
        self.most_aborting = 0
        self.flushed = 0
        self.died = False
        self.health_status = 200
        self.tells = asyncio.Event()  # /server_info answers
        self.tells.set()
        self.seed = 1
        self.state: dict[str, Any] = {}
        self.live_rooms: set[int] = set()
        self._runner: web.AppRunner | None = None
        self._events: dict[str, asyncio.Event] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 28)
        for path in ("/generate", "/v1/completions", "/v1/chat/completions", "/v1/responses"):
            app.router.add_post(path, self._generate)
        app.router.add_post("/abort_request", self._abort)
        app.router.add_post("/flush_cache", self._flush)
        app.router.add_get("/model_info", self._info)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/server_info", self._server_info)
        app.router.add_get("/v1/loads", self._loads)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, shutdown_timeout=0.05, access_log=None
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, backlog=4096)
        await site.start()
        # aiohttp shows the port of a listener that took a free one nowhere else.
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    @property
    def connections(self) -> list[Any]:
        """Open ones."""
        return [] if self._runner is None else list(self._runner.server.connections)

    async def stop(self) -> None:
        """Like kill -9: every connection is reset, nothing is said."""
        if self._runner is None:
            return
        for connection in self.connections:
            if connection.transport is not None:
                connection.transport.abort()
        for task in list(self.running.values()):
            task.cancel()
        await self._runner.cleanup()
        self._runner = None
        self.running.clear()
        self.live_rooms.clear()

    async def restart(self) -> None:
        """Another process under the same address."""
        await self.stop()
        self.seed += 1
        await self.start()

    async def _info(self, request: web.Request) -> web.Response:
        await self._maybe_hang()
        document = {"model_path": "fake", "role": self.role}
        return web.json_response(document, status=self.health_status)

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "fake", "object": "model"}]})

    async def _server_info(self, request: web.Request) -> web.Response:
        await self._maybe_hang()
        await self.tells.wait()
        return web.json_response(
            {
                "random_seed": self.seed,
                "startup_time": {"total": 1.0},
                "internal_states": [self.state],
                "max_total_num_tokens": 1_000_000,
                "served_model_name": "served",
            }
        )

    async def _loads(self, request: web.Request) -> web.Response:
        await self._maybe_hang()
        load = {
            "num_total_tokens": 0,
            "max_total_num_tokens": 1_000_000,
            "num_running_reqs": len(self.running),
            "num_waiting_reqs": 0,
            "max_running_requests": 1000,
            "num_waiting_uncached_tokens": 0,
        }
        return web.json_response({"loads": [load]})

    async def _flush(self, request: web.Request) -> web.Response:
        self.flushed += 1
        return web.Response(text="flushed")

    async def _abort(self, request: web.Request) -> web.Response:
        rid = orjson.loads(await request.read())["rid"]
        self.aborts += 1
        self.aborting += 1
        self.most_aborting = max(self.most_aborting, self.aborting)
        try:
            await self._maybe_hang()
            await asyncio.sleep(self.abort_s)
        finally:
            self.aborting -= 1
        for name in list(self.running):
            if name.startswith(rid):
                self.aborted.append(name)
                self._events[name].set()
        return web.Response(text="")

    async def _maybe_hang(self) -> None:
        if self.fault is not None and self.fault.kind == "stopped":
            await asyncio.sleep(3600)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        await self._maybe_hang()
        body = orjson.loads(await request.read())
        self.seen.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        fault = self._hit(body)
        if fault is not None and fault.kind == "not_found":
            body = b'{"detail":"Not Found"}'  # as FastAPI writes it
            return web.Response(body=body, status=404, content_type="application/json")
        if fault is not None and fault.kind == "dies":
            self.died = True
            self._ending = asyncio.ensure_future(self.stop())
            await asyncio.sleep(3600)
        if fault is not None and fault.kind == "status":
            error = {"error": {"message": "injected", "code": fault.status}}
            return web.json_response(error, status=fault.status)
        if fault is not None and fault.kind == "reset_headers":
            assert request.transport is not None
            request.transport.write(b"HTTP/1.1 200 OK\r\nconte")
            await asyncio.sleep(0.001)
            request.transport.abort()
            raise asyncio.CancelledError
        rid = body["request_id" if request.path == "/v1/responses" else "rid"]
        rids = rid if isinstance(rid, list) else [rid]
        rooms = body["bootstrap_room"]
        rooms = rooms if isinstance(rooms, list) else [rooms]
        for room in rooms:
            if room in self.live_rooms or (self.role == "decode" and room in self.world.used):
                self.world.violations.append(f"{self.role}: room {room} came twice")
            self.live_rooms.add(room)
            if self.role == "decode":
                self.world.used.add(room)
        aborted = asyncio.Event()
        for rid in rids:
            self._events[rid] = aborted
            # A handler runs in a task, so there is a current one.
            self.running[rid] = asyncio.current_task()  # type: ignore[assignment]
        try:
            return await self._answer(request, body, rooms, aborted, fault)
        finally:
            for rid in rids:
                self.running.pop(rid, None)
                self._events.pop(rid, None)
            self.live_rooms.difference_update(rooms)
            if self.role == "decode":
                for room in rooms:
                    self.world.room(room).failed.set()

    def _hit(self, body: dict[str, Any]) -> Fault | None:
        fault = self.fault
        if fault is not None and fault.only not in (None, body.get("input_ids")):
            return None
        if fault is None or fault.kind == "stopped" or fault.times <= 0:
            return None
        fault.times -= 1
        return fault

    async def _answer(
        self,
        request: web.Request,
        body: dict[str, Any],
        rooms: list[int],
        aborted: asyncio.Event,
        fault: Fault | None,
    ) -> web.StreamResponse:
        events = self._tokens(body, rooms, aborted, fault)
        if not body.get("stream"):
            last = [event async for event in events][-1]
            finish = last["meta_info"]["finish_reason"]
            if fault is not None and fault.kind == "abort":
                last["text"] = "x" * 10_000
                last["meta_info"]["finish_reason"] = {"type": "abort"}
            elif finish["type"] == "abort":
                error = {"error": {"message": finish["message"]}}
                return web.json_response(error, status=finish["status"])
            if fault is not None and fault.kind == "garbage":
                return web.Response(body=b"\x00garbage", content_type="application/json")
            rid = body.get("rid")
            return web.Response(
                body=orjson.dumps(
                    [last] * len(rid) if isinstance(rid, list) else shaped(last, request.path, body)
                ),
                content_type="application/json",
            )
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        response.enable_chunked_encoding()
        sent = 0
        if fault is not None and fault.kind == "garbage":
            await response.prepare(request)
            await response.write(b"\x00\x01 this is no event")
            return response
        async for event in events:
            if not response.prepared:
                await response.prepare(request)
            if fault is not None and sent >= fault.after:
                assert request.transport is not None
                if fault.kind == "reset_stream":
                    await response.write(b'data: {"te')  # half an event
                    await asyncio.sleep(0.001)
                    request.transport.abort()
                    raise asyncio.CancelledError
                if fault.kind == "incomplete":
                    return response
                if fault.kind == "error_event":
                    error = {"error": {"message": "injected", "code": fault.status}}
                    await response.write(b"data: " + orjson.dumps(error) + b"\n\n")
                    break
                if fault.kind == "drip":
                    await asyncio.sleep(3600)
            document = shaped(event, request.path, body)
            name = b""
            if "responses" in request.path:
                name = b"event: response." + document["status"].encode() + b"\n"
            await response.write(name + b"data: " + orjson.dumps(document) + b"\n\n")
            sent += 1
        if "responses" not in request.path:
            await response.write(b"data: [DONE]\n\n")
        return response

    async def _tokens(
        self, body: dict[str, Any], rooms: list[int], aborted: asyncio.Event, fault: Fault | None
    ) -> AsyncIterator[dict[str, Any]]:
        """Events as /generate streams them; the last one carries the reason of the end."""
        world = self.world
        transfers = [world.room(room) for room in rooms]
        params = body.get("sampling_params") or {}
        params = params[0] if isinstance(params, list) else params
        count = params.get("max_new_tokens", body.get("max_tokens", 4))
        if fault is not None and fault.kind == "abort_400":
            refused = event(0, body, "abort", 400)
            refused["meta_info"]["finish_reason"] |= {
                "message": "no such grammar",
                "status_code": 400,
                "err_type": "BadRequestError",
            }
            yield refused
            return
        if fault is not None and fault.kind == "hang":
            count = 0
            if await _first(aborted.wait(), asyncio.sleep(3600)) == 0:
                yield event(0, body, "abort")
                return
        if self.role == "prefill":
            for transfer in transfers:
                if await _first(aborted.wait(), transfer.preallocated.wait()) == 0:
                    yield event(0, body, "abort")
                    return
            if await _first(aborted.wait(), asyncio.sleep(world.prefill_s)) == 0:
                yield event(0, body, "abort")
                return
            for transfer in transfers:
                (transfer.failed if fault and fault.kind == "kv_failure" else transfer.sent).set()
            yield event(1, body, "length")
            return
        for transfer in transfers:
            transfer.preallocated.set()
        for transfer in transfers:
            which = await _first(aborted.wait(), transfer.sent.wait(), transfer.failed.wait())
            if which != 1:
                yield event(0, body, "abort", 500)
                return
        for number in range(1, count + 1):
            if number > 1 and not world.flows.is_set():
                await _first(aborted.wait(), world.flows.wait())
            if number > 1 and world.token_s:
                await _first(aborted.wait(), asyncio.sleep(world.token_s))
            if aborted.is_set():
                yield event(number - 1, body, "abort")
                return
            yield event(number, body, "length" if number == count else None)


def event(
    number: int, body: dict[str, Any], finish: str | None, status: int = 400
) -> dict[str, Any]:
    """One event of /generate."""
    reason = None if finish is None else {"type": finish}
    if finish == "abort":
        reason = {"type": "abort", "message": "aborted", "status": status}
    ids = body.get("input_ids") or [0]
    meta: dict[str, Any] = {
        "id": "fake",
        "prompt_tokens": len(ids),
        "completion_tokens": number,
        "finish_reason": reason,
    }
    if body.get("return_logprob"):
        meta["input_token_logprobs"] = [[-0.5, 7, None]]
    return {"text": "x" * number, "meta_info": meta}


def shaped(event: dict[str, Any], path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The event in the form of an endpoint."""
    if path == "/generate":
        return event
    meta = event["meta_info"]
    finish = meta["finish_reason"] and meta["finish_reason"]["type"]
    usage = {
        "prompt_tokens": meta["prompt_tokens"],
        "completion_tokens": meta["completion_tokens"],
        "total_tokens": meta["prompt_tokens"] + meta["completion_tokens"],
    }
    if "responses" in path:
        ends = {None: "in_progress", "length": "incomplete", "abort": "failed"}
        return {"id": body["request_id"], "object": "response", "created_at": 1, "model": "fake",
                "status": ends[finish], "metadata": body.get("metadata"), "output": [],
                "usage": usage}  # fmt: skip
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
    kind = "text_completion"
    if "chat" in path:
        kind = "chat.completion"
        choice["delta"] = choice["message"] = {"role": "assistant", "content": "x"}
    else:
        choice["text"] = "x"
    return {"id": "fake", "object": kind, "created": 1, "model": "fake", "choices": [choice],
            "usage": usage}  # fmt: skip


async def _first(*awaitables: Any) -> int:
    """Index of the one that is done first; the earlier one of several."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(index for index, task in enumerate(tasks) if task.done())
    finally:
        for task in tasks:
            task.cancel()


class Fakes:
    """A cluster of them."""

    def __init__(self, prefill: int = 1, decode: int = 1, **world: float) -> None:
        self.world = World(**world)
        self.prefill = [Engine("prefill", self.world) for _ in range(prefill)]
        self.decode = [Engine("decode", self.world) for _ in range(decode)]

    @property
    def all(self) -> list[Engine]:
        return [*self.prefill, *self.decode]

    async def start(self) -> None:
        for engine in self.all:
            await engine.start()

    async def stop(self) -> None:
        for engine in self.all:
            await engine.stop()

    @property
    def idle(self) -> bool:
        """Whether nothing is left at any server."""
        return not any(engine.running or engine.live_rooms for engine in self.all)


async def until(condition: Callable[[], bool], what: str = "it", limit_s: float = 30.0) -> None:
    """Return once `condition` holds; fail after `limit_s`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            while not condition():
                await asyncio.sleep(0.005)
            return
    raise AssertionError(f"waited {limit_s} s for {what}")


@asynccontextmanager
async def fakes(prefill: int = 1, decode: int = 1, **world: float) -> AsyncIterator[Fakes]:
    """Running fake servers."""
    cluster = Fakes(prefill, decode, **world)
    await cluster.start()
    try:
        yield cluster
    finally:
        await cluster.stop()
