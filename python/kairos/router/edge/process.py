"""The router's process: what it loads, where it listens, and how it ends."""

import asyncio
import errno
import gc
import logging
import resource
import signal
import ssl

import uvloop
from aiohttp import web

from kairos.errors import InputError
from kairos.router.config.settings import RouterConfig
from kairos.router.edge.app import App
from kairos.router.edge.client_connection import protocol_factory
from kairos.router.edge.listener import ConnectionCount, Listener, no_listening, try_address
from kairos.router.edge.tls import reload_certificate, server_context
from kairos.router.observe import tracing
from kairos.router.router import Router
from kairos.router.workers.discovery import read_workers

_log = logging.getLogger(__name__)

_GC_THRESHOLDS = (40_000, 20, 100)
"""Open requests are many young objects that are all alive: looking through them again and again
cost a tenth of a busy router's time."""


def serve(config: RouterConfig) -> int:
    """Listen until SIGTERM or SIGINT, then drain; the exit code."""
    tracing.configure()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    _raise_file_limit(config.limits.max_connections)
    return uvloop.run(_serve(config))


def check(config: RouterConfig) -> str | None:
    """Load what a start loads, and try the address; return what to know before the start.

    Raises:
        InputError: the router would not start.
    """

    async def load() -> str | None:
        router = Router(config)
        try:
            if config.workers.workers_file is not None:
                read_workers(config.workers.workers_file)
            server_context(config.listen)
            try_address(config.listen.host, config.listen.port)
        except OSError as error:
            problem = no_listening(config.listen, error)
            if error.errno != errno.EADDRINUSE:
                raise InputError(f"--host, --port: {problem}") from None
            return f"note: {problem}"  # perhaps this router, which is to be restarted
        finally:
            await router.stop()
            router.close()
        return None

    return uvloop.run(load())


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
    await router.start()
    try:
        try:
            listener = listen(router, server, config.listen.port, context)
        except OSError as error:
            raise InputError(f"--host, --port: {no_listening(config.listen, error)}") from None
        scheme = "http" if context is None else "https"
        _log.info("listening on %s://%s:%d", scheme, config.listen.host, listener.port)
        await stop.wait()
        _log.info("draining: %d requests", len(router.handler.active))
        await router.leave()
        # Connections are accepted until the end, so that load balancers hear 503 and scrapers the
        # last counts.
        await router.drain()
        listener.close()
    finally:
        await router.stop()
        await server.shutdown(1.0)
        router.close()
    return 0


def make_server(router: Router) -> web.Server:
    """The server whose connections `listen` accepts."""
    return web.Server(App(router), handler_cancellation=True, access_log=None)


def listen(
    router: Router, server: web.Server, port: int, context: ssl.SSLContext | None = None
) -> Listener:
    """Accept clients from now on.

    Raises:
        OSError: the address cannot be listened on.
    """
    config, metrics = router.config, router.metrics
    count = ConnectionCount(config.limits.max_connections, metrics.connections.set, metrics.refused)
    factory = protocol_factory(server, config, metrics.refused, count)
    header_s = config.timeouts.header_timeout_s
    return Listener(factory, config.listen.host, port, count, context, header_s)
