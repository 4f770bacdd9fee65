"""The router's endpoints and its process: listen, serve, drain."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
import orjson
from aiohttp import web

from kairos.errors import InputError
from kairos.router.edge.answers import SERVER, json_answer, refusal
from kairos.router.edge.errors import RequestError, invalid
from kairos.router.edge.limits import check_headers, read_body
from kairos.router.edge.openapi import document
from kairos.router.observe.metrics import CONTENT_TYPE
from kairos.router.paths import PATHS
from kairos.router.request.outcome import Outcome
from kairos.router.router import Router
from kairos.router.text import clean
from kairos.router.upstream.http_client import BrokenError
from kairos.router.workers.endpoint import Role, parse_endpoint
from kairos.router.workers.worker import State, Worker
from kairos.slo import SLO_HEADERS

_log = logging.getLogger(__name__)

_FORWARD_TIMEOUT_S = 10.0

_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "authorization, content-type, x-request-id, "
    + ", ".join(SLO_HEADERS),
    "Access-Control-Max-Age": "600",
}

Handler = Callable[..., Awaitable[web.StreamResponse]]


class NewWorker(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /workers."""

    role: Role
    url: str
    bootstrap_port: int | str | None = None


class App:
    """Finds the handler of a request; no framework, few paths.

    Attributes:
        routes: handlers by path and method; the name in a path's braces is their argument `name`.
    """

    def __init__(self, router: Router) -> None:
        self.router = router
        self.routes: dict[str, dict[str, Handler]] = {
            **{path: {"POST": self._generate} for path in PATHS},
            "/v1/models": {"GET": self._list_models},
            "/v1/models/{model}": {"GET": self._show_model},
            "/model_info": {"GET": self._model_info},
            "/get_model_info": {"GET": self._model_info},
            "/health": {"GET": self._health},
            "/ready": {"GET": self._ready},
            "/metrics": {"GET": self._metrics},
            "/openapi.json": {"GET": self._openapi},
            "/workers": {"GET": self._list_workers, "POST": self._add_worker},
            "/workers/{worker}": {"DELETE": self._remove_worker},
            "/workers/{worker}/drain": {"POST": self._drain_worker},
            "/workers/{worker}/undrain": {"POST": self._undrain_worker},
            "/flush_cache": {"POST": self._flush, "GET": self._flush},
        }
        self._description = orjson.dumps(document())

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        cors = self._cors(request)
        if cors and request.method == "OPTIONS":
            return web.Response(status=204, headers={**SERVER, **cors, **_PREFLIGHT})
        answer = await self._answer(request)
        if not answer.prepared:
            answer.headers.update({**SERVER, **cors})
        return answer

    async def _generate(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self.router.handler(request, request.path.rstrip("/"), self._cors(request))

    def _cors(self, request: web.BaseRequest) -> dict[str, str]:
        """Return the header lines that let the request's page read the answer, if it may."""
        origin = request.headers.get("Origin")
        allowed = self.router.config.listen.cors_origin
        if origin is None or not (origin in allowed or "*" in allowed):
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": "*",
            "Vary": "Origin",
        }

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path.rstrip("/") or "/"
        methods = self._methods(path)
        handler = methods.get("GET" if request.method == "HEAD" else request.method)
        if handler == self._generate:
            return await handler(request)  # checks its header lines itself
        try:
            check_headers(request.raw_headers, self.router.config.limits)
            if not methods:
                known = ", ".join(sorted(self.routes))
                raise invalid(404, "path", f"there is no {path[:80]}; there are {known}")
            if handler is None:
                raise invalid(405, "method", f"allowed is {', '.join(methods)}")
            return await handler(request)
        except RequestError as error:
            answer = refusal(error)
            if error.status == 405:
                answer.headers["Allow"] = ", ".join(methods)
            return answer

    def _methods(self, path: str) -> dict[str, Handler]:
        """Return the handlers of a path by method; none where there is nothing."""
        if path in self.routes:
            return self.routes[path]
        for template, methods in reversed(self.routes.items()):
            begin, brace, rest = template.partition("{")
            end = rest.partition("}")[2]
            if brace and path.startswith(begin) and path.endswith(end):
                name = path.removeprefix(begin).removesuffix(end)
                return {method: partial(handler, name=name) for method, handler in methods.items()}
        return {}

    async def _health(self, request: web.BaseRequest) -> web.Response:
        return json_answer({"status": "ok"})

    async def _ready(self, request: web.BaseRequest) -> web.Response:
        router = self.router
        if router.leaving:
            return json_answer({"status": "draining"}, 503)
        if not router.health.ready:
            return json_answer({"status": "no pair generated a token recently"}, 503)
        return json_answer({"status": "ready"})

    async def _metrics(self, request: web.BaseRequest) -> web.Response:
        self.router.keyring.authorize_metrics(request.headers)
        self.router.gauges()
        self.router.scraped()
        body = self.router.metrics.exposition()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def _openapi(self, request: web.BaseRequest) -> web.Response:
        return web.Response(body=self._description, content_type="application/json")

    async def _model_info(self, request: web.BaseRequest) -> web.Response:
        """Pass the question on to one of the workers."""
        self.router.keyring.authenticate(request.headers)
        for worker in self._ready_workers():
            status, body = await self._call(worker, "GET", "/model_info")
            if status == 200:
                return web.Response(body=body, content_type="application/json")
        raise RequestError(502, Outcome.ENGINE_FAILED, "server", "the server failed", 2.0)

    async def _list_models(self, request: web.BaseRequest) -> web.Response:
        """Return the models of all workers, each once."""
        self.router.keyring.authenticate(request.headers)
        models = await self._known_models()
        return json_answer({"object": "list", "data": list(models.values())})

    async def _show_model(self, request: web.BaseRequest, name: str) -> web.Response:
        self.router.keyring.authenticate(request.headers)
        models = await self._known_models()
        if name not in models:
            known = ", ".join(models)
            raise invalid(404, "model", f"there is no model {name[:80]!r}; there are {known}")
        return json_answer(models[name])

    async def _known_models(self) -> dict[str, Any]:
        workers = self._ready_workers()
        answers = await asyncio.gather(*(self._call(w, "GET", "/v1/models") for w in workers))
        models: dict[str, Any] = {}
        for status, body in answers:
            try:
                found = orjson.loads(body)["data"] if status == 200 else []
                models |= {str(model["id"]): model for model in found}
            except (orjson.JSONDecodeError, KeyError, TypeError):
                continue
        if not models:
            raise RequestError(502, Outcome.ENGINE_FAILED, "server", "the servers failed", 2.0)
        return models

    def _ready_workers(self) -> list[Worker]:
        registry = self.router.registry
        workers = [w for role in Role for w in registry.of(role, State.READY)]
        if not workers:
            raise RequestError(503, Outcome.UNAVAILABLE, "no_pair", "no server is ready", 2.0)
        return workers

    async def _list_workers(self, request: web.BaseRequest) -> web.Response:
        self.router.keyring.authorize_admin(request.headers, changes=False)
        return json_answer({"workers": self.router.registry.snapshot()})

    async def _add_worker(self, request: web.BaseRequest) -> web.Response:
        router = self.router
        self._authorize_admin(request)
        with router.bodies.hold("") as held:
            raw = await read_body(request, router.config.limits, router.config.timeouts, held)
        try:
            asked = msgspec.json.decode(raw, type=NewWorker)
            endpoint = parse_endpoint(asked.role, asked.url, asked.bootstrap_port, "url")
            if asked.role is Role.DECODE and endpoint.bootstrap_port is not None:
                raise InputError("bootstrap_port: a decode server has none")
        except (InputError, msgspec.DecodeError) as error:
            raise invalid(400, "body_invalid", str(error)) from None
        try:
            router.discovery.add(endpoint)
        except InputError as error:
            known = "--allow-worker" not in str(error)
            raise invalid(409 if known else 403, "worker", str(error)) from None
        return json_answer({"worker": endpoint.key, "state": State.STARTING.value}, 201)

    async def _drain_worker(self, request: web.BaseRequest, name: str) -> web.Response:
        worker = self._named_worker(request, name)
        self.router.registry.drain(worker.key)
        return json_answer({"worker": worker.key, "state": worker.state.value})

    async def _undrain_worker(self, request: web.BaseRequest, name: str) -> web.Response:
        worker = self._named_worker(request, name)
        self.router.registry.undrain(worker.key)
        return json_answer({"worker": worker.key, "state": worker.state.value})

    async def _remove_worker(self, request: web.BaseRequest, name: str) -> web.Response:
        key = self._named_worker(request, name).key
        try:
            self.router.discovery.remove(key)
        except KeyError:  # it is leaving already
            raise invalid(404, "worker", "there is no such server") from None
        return json_answer({"worker": key, "state": State.DRAINING.value})

    def _named_worker(self, request: web.BaseRequest, name: str) -> Worker:
        """Return the worker that an administrator names in the path."""
        self._authorize_admin(request)
        workers = self.router.registry.workers
        if name not in workers:
            known = ", ".join(workers)
            raise invalid(404, "worker", f"there is no worker {name[:80]!r}; there are {known}")
        return workers[name]

    def _authorize_admin(self, request: web.BaseRequest, changes: bool = True) -> None:
        """Let the administrator pass, and log the call."""
        self.router.keyring.authorize_admin(request.headers, changes=changes)
        _log.info("admin: %s %s from %s", request.method, clean(request.path, 100), request.remote)

    async def _flush(self, request: web.BaseRequest) -> web.Response:
        """Empty the prefix caches of all servers."""
        router = self.router
        self._authorize_admin(request, changes=False)
        workers = list(router.registry.workers.values())
        if not workers:
            raise RequestError(503, Outcome.UNAVAILABLE, "no_pair", "there is no server", 2.0)
        answers = await asyncio.gather(
            *(self._call(worker, "POST", "/flush_cache", admin=True) for worker in workers)
        )
        results = {i.key: status for i, (status, _) in zip(workers, answers, strict=True)}
        for key, status in results.items():
            if status == 200:
                router.dispatcher.forget_cache(key)
        good = all(status == 200 for status in results.values())
        return json_answer({"workers": results}, 200 if good else 502)

    async def _call(
        self, worker: Worker, method: str, path: str, admin: bool = False
    ) -> tuple[int, bytes]:
        """Status, 0 where there was no answer, and body."""
        router = self.router
        headers = router.keyring.admin_headers() if admin else router.keyring.engine_headers()
        try:
            status, _, body = await router.pool.call(
                worker.endpoint, method, path, _FORWARD_TIMEOUT_S, headers=headers
            )
        except (BrokenError, TimeoutError):
            return 0, b""
        return status, body
