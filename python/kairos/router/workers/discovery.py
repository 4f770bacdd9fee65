"""The sources of workers: flags, a watched file, DNS names, and the admin interface.

Every source yields the whole set of its workers, again when it changes. A source that fails keeps
its last set: workers that are really gone are taken out by their health checks.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from pathlib import Path

from kairos.errors import InputError
from kairos.router.config.load import read_document, refuse_unknown
from kairos.router.config.settings import RouterConfig
from kairos.router.workers.endpoint import Role, WorkerEndpoint, allowed, read_endpoint

_log = logging.getLogger(__name__)

_FILE_POLL_MS = 5000
_SETTLE_S = 0.3  # between two readings of a file, which must agree
_AGAIN_S = 5.0  # after a failure that a source did not expect

Endpoints = frozenset[WorkerEndpoint]
Changed = Callable[[Endpoints, Endpoints], None]
"""Receives the workers that came, and those that went and should be drained."""
DiscoverySource = Callable[[], AsyncIterator[Endpoints]]
"""Yields all workers of one source, at once and after every change; may repeat itself or end."""


async def watch_file(path: Path) -> AsyncIterator[Endpoints]:
    """Yield the workers of a file: `prefill: [[URL, BOOTSTRAP_PORT], ...]`, `decode: [URL, ...]`.

    A state of the file that cannot be used is logged and skipped. A file that is still being
    written differs from itself a moment later, and is skipped too.
    """
    from watchfiles import awatch

    async def settled() -> AsyncIterator[Endpoints]:
        try:
            found = read_workers(path)
            await asyncio.sleep(_SETTLE_S)
            if read_workers(path) == found:
                yield found
        except InputError as error:
            _log.error("%s; the servers stay as they are", error)

    async for endpoints in settled():
        yield endpoints
    # The folder is watched, not the file: editors and Kubernetes replace it by renaming, or by
    # moving a link that leads to it. Time-outs yield too: not every file system tells of changes.
    async for _ in awatch(
        path.parent,
        watch_filter=None,
        recursive=False,
        debounce=200,
        rust_timeout=_FILE_POLL_MS,
        yield_on_timeout=True,
    ):
        async for endpoints in settled():
            yield endpoints


async def watch_name(origin: WorkerEndpoint, interval_s: float) -> AsyncIterator[Endpoints]:
    """Yield a worker per address of a DNS name, as of a headless Kubernetes service."""
    scheme, _, key = origin.url.partition("://")
    port = int(key.rpartition(":")[2])
    failed = False
    while True:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                origin.host, port, type=socket.SOCK_STREAM
            )
        except OSError as error:
            if not failed:
                _log.warning("dns %s: %s; the servers stay as they are", origin.key, error)
            failed = True
        else:
            failed = False
            addresses = {str(address[4][0]) for address in found}
            yield frozenset(
                WorkerEndpoint(
                    origin.role,
                    f"{scheme}://{f'[{a}]' if ':' in a else a}:{port}",
                    origin.bootstrap_port,
                    origin.host if scheme == "https" else "",
                )
                for a in addresses
            )
        await asyncio.sleep(interval_s)


def read_workers(path: Path) -> Endpoints:
    """Return the workers in a file.

    Raises:
        InputError: unreadable, malformed, or a server named twice.
    """
    document = read_document(path, "--workers-file")
    where = f"--workers-file: {path}"
    refuse_unknown(document, [role.value for role in Role], where)
    endpoints: dict[str, WorkerEndpoint] = {}
    for role in Role:
        label = f"{where}: {role.value}"
        items = document.get(role.value, [])
        if not isinstance(items, list):
            raise InputError(f"{label}: it must be a list")
        for item in items:
            endpoint = read_endpoint(role, item, label)
            if endpoint.key in endpoints:
                raise InputError(f"{where}: {endpoint.key} is named more than once")
            endpoints[endpoint.key] = endpoint
    for role in Role:
        if role.value not in document:
            text = f"it names no {role.value} server; write {role.value}: [] if that is meant"
            raise InputError(f"{where}: {text}")
    return frozenset(endpoints.values())


class WorkerDiscovery:
    """All workers that this process may use.

    These are the union of the sources, bounded by `--allow-worker`, less those that the
    administrator removed.

    Attributes:
        endpoints: of the workers in use now.
        sources: by name; flags and admin interface are none, because they need no watching.
    """

    def __init__(self, config: RouterConfig, changed: Changed) -> None:
        workers = config.workers
        self._config = config
        self._changed = changed
        self._by_source: dict[str, Endpoints] = {}
        self._removed: set[str] = set()  # keys; a source still names them
        self.endpoints: Endpoints = frozenset()
        self.sources: dict[str, DiscoverySource] = {}
        if workers.workers_file is not None:
            self.sources["file"] = partial(watch_file, workers.workers_file)
        for name in (*workers.prefill_dns, *workers.decode_dns):
            self.sources[f"{name.role} dns {name.key}"] = partial(
                watch_name, name, workers.dns_interval_s
            )

    async def run(self) -> None:
        """Follow every source until cancelled.

        Raises:
            InputError: as `start`.
        """
        self.start()
        async with asyncio.TaskGroup() as group:
            for name, source in self.sources.items():
                group.create_task(self._follow(name, source), name=f"discovery {name}")

    def start(self) -> None:
        """Take over the workers of flags and file, without waiting.

        Raises:
            InputError: the file of workers is malformed.
        """
        workers = self._config.workers
        self._by_source["flags"] = frozenset((*workers.prefill, *workers.decode))
        if workers.workers_file is not None:
            self._by_source["file"] = self._permitted("file", read_workers(workers.workers_file))
        self._update()

    def add(self, endpoint: WorkerEndpoint) -> None:
        """Add a worker on the administrator's behalf.

        Raises:
            InputError: not in `--allow-worker`, or known already.
        """
        patterns = self._config.workers.allow_worker
        if not patterns:
            raise InputError(
                f"worker {endpoint.key}: none may be added: the router has no --allow-worker"
            )
        if not allowed(patterns, endpoint):
            raise InputError(f"worker {endpoint.key}: it is not in --allow-worker")
        if any(known.key == endpoint.key for known in self.endpoints):
            raise InputError(f"worker {endpoint.key}: it is known already")
        self._removed.discard(endpoint.key)
        others = {e for e in self._by_source.get("admin", ()) if e.key != endpoint.key}
        named_elsewhere = any(
            endpoint in endpoints for name, endpoints in self._by_source.items() if name != "admin"
        )
        self._by_source["admin"] = frozenset(others if named_elsewhere else {*others, endpoint})
        self._update()

    def remove(self, key: str) -> None:
        """Remove a worker of any source, until it is added again or the router restarts.

        Raises:
            KeyError: it is not known.
        """
        if all(endpoint.key != key for endpoint in self.endpoints):
            raise KeyError(key)
        admin = self._by_source.get("admin", frozenset())
        self._by_source["admin"] = frozenset(e for e in admin if e.key != key)
        if any(e.key == key for endpoints in self._by_source.values() for e in endpoints):
            self._removed.add(key)
        self._update()

    async def _follow(self, name: str, source: DiscoverySource) -> None:
        last: Endpoints | None = None
        while True:
            try:
                async for endpoints in source():
                    if endpoints != last:
                        last = endpoints
                        self._by_source[name] = self._permitted(name, endpoints)
                        self._update()
                return
            except Exception:
                # As when the kernel has no file watches left. The known workers stay.
                _log.exception("discovery %s: failed; again in %g s", name, _AGAIN_S)
                await asyncio.sleep(_AGAIN_S)

    def _permitted(self, name: str, endpoints: Endpoints) -> Endpoints:
        patterns = self._config.workers.allow_worker
        permitted = frozenset(e for e in endpoints if allowed(patterns, e))
        for endpoint in sorted(endpoints - permitted):
            _log.error("%s: %s is not in --allow-worker; not used", name, endpoint.key)
        return permitted

    def _update(self) -> None:
        wanted = unite(self._by_source.values(), self._removed)
        added, gone = wanted - self.endpoints, self.endpoints - wanted
        if not added and not gone:
            return
        self.endpoints = wanted
        for endpoint in sorted(added):
            _log.info("%s server %s: added", endpoint.role, endpoint.key)
        for endpoint in sorted(gone):
            _log.info("%s server %s: removed", endpoint.role, endpoint.key)
        self._changed(added, gone)


def unite(sources: Iterable[Endpoints], without: Iterable[str] = ()) -> Endpoints:
    """Return the workers of all sources, one per address; the first source wins."""
    hidden = set(without)
    united: dict[str, WorkerEndpoint] = {}
    for endpoints in sources:
        for endpoint in sorted(endpoints):
            if endpoint.key in hidden:
                continue
            if united.setdefault(endpoint.key, endpoint) != endpoint:
                _log.error("%s: named as two different servers", endpoint.key)
    return frozenset(united.values())
