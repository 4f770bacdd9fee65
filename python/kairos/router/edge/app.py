"""The router's endpoints and its process: listen, serve, drain."""

import asyncio
import gc
import logging
import resource
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import uvloop
from aiohttp import web

from kairos.errors import InputError
from kairos.router.config.settings import RouterConfig
from kairos.router.edge import openapi
from kairos.router.edge.answers import json_answer, refusal
from kairos.router.edge.client_connection import protocol_factory
from kairos.router.edge.errors import RequestError, invalid
from kairos.router.edge.limits import check_headers
from kairos.router.edge.listener import Listener
from kairos.router.edge.tls import reload_certificate, server_context
from kairos.router.observe import tracing
from kairos.router.observe.metrics import CONTENT_TYPE
from kairos.router.request import parsing as intakes
from kairos.router.request.handler import Router
from kairos.router.request.outcome import Outcome
from kairos.router.upstream.http_client import BrokenError
from kairos.router.workers.endpoint import Role, parse_endpoint
from kairos.router.workers.worker import State, Worker

_log = logging.getLogger(__name__)

_FORWARD_TIMEOUT_S = 10.0
_GC_THRESHOLDS = (20_000, 20, 100)
"""Open requests are many young objects that are all alive: looking through them again and again
cost a tenth of a busy router's time."""
_ASKED = {
    "/v1/models": "/v1/models",
    "/model_info": "/model_info",
    "/get_model_info": "/model_info",
}

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class App:
    """Finds the handler of a request; no framework, few paths."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self._by_path: dict[str, dict[str, Handler]] = {
            **{path: {"POST": router.generate} for path in intakes.PATHS},
            **{path: {"GET": self._ask} for path in _ASKED},
            "/health": {"GET": self._health},
            "/ready": {"GET": self._ready},
            "/metrics": {"GET": self._metrics},
            "/openapi.json": {"GET": self._openapi},
            "/workers": {"GET": self._list_workers, "POST": self._add_worker},
            "/flush_cache": {"POST": self._flush, "GET": self._flush},
        }

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        methods = self._by_path.get(request.path)
        if methods is None and request.path.startswith("/workers/"):
            drain = request.path.endswith("/drain")
            methods = {"POST": self._drain_worker} if drain else {"DELETE": self._remove_worker}
        handler = None if methods is None else methods.get(request.method)
        if handler == self.router.generate:
            return await handler(request)
        try:
            check_headers(request.raw_headers, self.router.config.limits)
            if methods is None:
                raise invalid(404, "path", "there is nothing here")
            if handler is None:
                raise invalid(405, "method", f"allowed is {', '.join(methods)}")
            return await handler(request)
        except RequestError as error:
            answer = refusal(error)
            if methods is not None and error.status == 405:
                answer.headers["Allow"] = ", ".join(methods)
            return answer

    async def _health(self, request: web.BaseRequest) -> web.Response:
        return json_answer({"status": "ok"})

    async def _ready(self, request: web.BaseRequest) -> web.Response:
        router = self.router
        if router.draining:
            return json_answer({"status": "draining"}, 503)
        if not router.health.ready:
            return json_answer({"status": "no pair generated a token recently"}, 503)
        return json_answer({"status": "ready"})

    async def _metrics(self, request: web.BaseRequest) -> web.Response:
        self.router.keyring.authorize_metrics(request.headers)
        self.router.gauges()
        body = self.router.metrics.exposition()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def _openapi(self, request: web.BaseRequest) -> web.Response:
        return web.Response(body=openapi.encoded(), content_type="application/json")

    async def _ask(self, request: web.BaseRequest) -> web.Response:
        """Pass a question on to one of the servers."""
        router = self.router
        router.keyring.authenticate(request.headers)
        instances = router.registry.of(Role.PREFILL, State.READY) + router.registry.of(
            Role.DECODE, State.READY
        )
        if not instances:
            raise RequestError(503, Outcome.UNAVAILABLE, "no_pair", "no server is ready", 2.0)
        status, body = await self._call(instances[0], "GET", _ASKED[request.path])
        if status >= 500 or not status:
            raise RequestError(502, Outcome.ENGINE_FAILED, "server", "the server failed", 2.0)
        return web.Response(body=body, status=status, content_type="application/json")

    async def _list_workers(self, request: web.BaseRequest) -> web.Response:
        self.router.keyring.authorize_admin(request.headers, changes=False)
        return json_answer({"workers": self.router.registry.snapshot()})

    async def _add_worker(self, request: web.BaseRequest) -> web.Response:
        router = self.router
        router.keyring.authorize_admin(request.headers)
        with router.bodies.hold("") as held:
            raw = await router.body_of(request, held)
        try:
            asked: Any = orjson.loads(raw)
            if not isinstance(asked, dict) or not {"role", "url"} <= set(asked):
                raise InputError("body: it must be an object with role and url")
            if unknown := set(asked) - {"role", "url", "bootstrap_port"}:
                raise InputError(f"body: unknown field {sorted(unknown)[0]!a}")
            if asked["role"] not in [role.value for role in Role]:
                raise InputError("role: allowed are prefill and decode")
            role = Role(asked["role"])
            endpoint = parse_endpoint(role, asked["url"], asked.get("bootstrap_port"), "url")
            if role is Role.DECODE and endpoint.bootstrap_port is not None:
                raise InputError("bootstrap_port: a decode server has none")
        except (InputError, orjson.JSONDecodeError) as error:
            raise invalid(400, "body_invalid", str(error)) from None
        try:
            router.discovery.add(endpoint)
        except InputError as error:
            known = "--allow-worker" not in str(error)
            raise invalid(409 if known else 403, "worker", str(error)) from None
        return json_answer({"worker": endpoint.key, "state": State.STARTING.value}, 201)

    async def _drain_worker(self, request: web.BaseRequest) -> web.Response:
        self.router.keyring.authorize_admin(request.headers)
        key = request.path.removeprefix("/workers/").removesuffix("/drain")
        if key not in self.router.registry.workers:
            raise invalid(404, "worker", "there is no such server")
        self.router.registry.drain(key)
        return json_answer({"worker": key, "state": State.DRAINING.value})

    async def _remove_worker(self, request: web.BaseRequest) -> web.Response:
        self.router.keyring.authorize_admin(request.headers)
        key = request.path.removeprefix("/workers/")
        try:
            self.router.discovery.remove(key)
        except KeyError:
            raise invalid(404, "worker", "there is no such server") from None
        return json_answer({"worker": key, "state": State.DRAINING.value})

    async def _flush(self, request: web.BaseRequest) -> web.Response:
        """Empty the prefix caches of all servers."""
        router = self.router
        router.keyring.authorize_admin(request.headers, changes=False)
        instances = list(router.registry.workers.values())
        if not instances:
            raise RequestError(503, Outcome.UNAVAILABLE, "no_pair", "there is no server", 2.0)
        answers = await asyncio.gather(
            *(self._call(instance, "POST", "/flush_cache", admin=True) for instance in instances)
        )
        results = {i.key: status for i, (status, _) in zip(instances, answers, strict=True)}
        for key, status in results.items():
            if status == 200:
                router.registry.flushed(key)
        good = all(status == 200 for status in results.values())
        return json_answer({"workers": results}, 200 if good else 502)

    async def _call(
        self, instance: Worker, method: str, path: str, admin: bool = False
    ) -> tuple[int, bytes]:
        """Status, 0 where there was no answer, and body."""
        router = self.router
        headers = router.admin_headers() if admin else router.engine_headers()
        try:
            status, _, body = await router.pool.call(
                instance.endpoint, method, path, _FORWARD_TIMEOUT_S, headers=headers
            )
        except (BrokenError, TimeoutError):
            return 0, b""
        return status, body


def serve(config: RouterConfig) -> int:
    """Listen until SIGTERM or SIGINT, then drain; the exit code."""
    tracing.configure()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    _raise_file_limit(config.limits.max_connections)
    return uvloop.run(_serve(config))


def _raise_file_limit(connections: int) -> None:
    """A stream takes two files beside its client's; many systems give 1,024 unless asked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < connections:
        _log.warning(
            "--max-connections %d: only %d open files are allowed (ulimit -Hn), and a stream takes "
            "three",
            connections,
            hard,
        )


async def _serve(config: RouterConfig) -> int:
    router = Router(config)
    loop = asyncio.get_running_loop()
    context = server_context(config.listen)
    stop = asyncio.Event()

    def reload() -> None:
        router.reload()
        if context is not None and (problem := reload_certificate(context, config.listen)):
            _log.error("%s", problem)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    server = make_server(router)
    factory = make_factory(router, server)
    listen = config.listen
    ports = [listen.port] if listen.cell_port is None else [listen.port, listen.cell_port]
    listeners = []
    try:
        await router.start()
        try:
            for port in ports:
                shared = listen.cell is not None and port == listen.port
                listeners.append(
                    Listener(
                        factory, listen.host, port, context, shared,
                        config.timeouts.header_timeout_s,
                    )
                )  # fmt: skip
        except OSError as error:
            raise InputError(f"--host, --port: cannot listen on them: {error}") from error
        scheme = "http" if context is None else "https"
        for listener in listeners:
            _log.info("listening on %s://%s:%d", scheme, listen.host, listener.port)
        await stop.wait()
        _log.info("draining: %d requests", len(router.active_requests))
        for listener in listeners:
            listener.close()
    finally:
        await router.stop()
        await server.shutdown(1.0)
        router.close()
    return 0


def make_server(router: Router) -> web.Server:
    """The server that `make_factory` makes connections of."""
    return web.Server(App(router), handler_cancellation=True, access_log=None)


def make_factory(router: Router, server: web.Server) -> Callable[[], asyncio.Protocol]:
    """For a `Listener`."""

    def refused(_: int, reason: str) -> None:
        router.metrics.rejected.labels(router.metrics.reason(reason)).inc()

    return protocol_factory(server, router.config, refused, router.metrics.connections.set)
