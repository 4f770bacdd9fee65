"""Where servers come from: flags, a watched file, DNS names, and the admin interface.

Every source yields the whole set of servers it knows, again when it changes. A source that fails
keeps the set it had: servers that are really gone are taken out by their health.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Protocol

from kairos.errors import InputError
from kairos.router.config.load import read_document, refuse_unknown
from kairos.router.config.settings import RouterConfig, Workers
from kairos.router.workers.endpoint import Role, WorkerEndpoint, allowed, parse_endpoint

_log = logging.getLogger(__name__)

_FILE_POLL_MS = 5000
_SETTLE_S = 0.3  # between two readings of a file, which must agree
_AGAIN_S = 5.0  # after a failure that a source did not expect

Endpoints = frozenset[WorkerEndpoint]
# Told of servers that came, and of those that went (which should be drained).
Changed = Callable[[Endpoints, Endpoints], None]


class DiscoverySource(Protocol):
    """One origin of servers."""

    name: str

    def watch(self) -> AsyncIterator[Endpoints]:
        """Yield what it knows, at once and after every change; may end."""
        ...


class StaticSource:
    """The servers of the flags."""

    name = "flags"

    def __init__(self, workers: Workers) -> None:
        self.endpoints = frozenset((*workers.prefill, *workers.decode))

    async def watch(self) -> AsyncIterator[Endpoints]:
        yield self.endpoints


class FileSource:
    """A file of servers: `prefill: [[URL, BOOTSTRAP_PORT], ...]` and `decode: [URL, ...]`."""

    name = "file"

    def __init__(self, path: Path) -> None:
        self._path = path

    async def watch(self) -> AsyncIterator[Endpoints]:
        from watchfiles import awatch

        last: Endpoints | None = None
        async for now in self._good():
            yield (last := now)
        # The folder is watched, not the file: editors and Kubernetes replace it by renaming, or by
        # moving a link that leads to it. Time-outs yield too: not every file system tells.
        async for _ in awatch(
            self._path.parent,
            watch_filter=None,
            recursive=False,
            debounce=200,
            rust_timeout=_FILE_POLL_MS,
            yield_on_timeout=True,
        ):
            async for now in self._good():
                if now != last:
                    yield (last := now)

    async def _good(self) -> AsyncIterator[Endpoints]:
        """What the file holds; nothing if that is no good. A file that is still being written
        differs from itself a moment later."""
        try:
            found = read_workers(self._path)
            await asyncio.sleep(_SETTLE_S)
            if read_workers(self._path) == found:
                yield found
        except InputError as error:
            _log.error("%s; the servers stay as they are", error)


class DnsSource:
    """A name all of whose addresses are servers, like that of a headless Kubernetes service."""

    def __init__(self, endpoint: WorkerEndpoint, interval_s: float) -> None:
        self._endpoint = endpoint
        self._interval_s = interval_s
        self.name = f"dns {endpoint.key}"

    async def watch(self) -> AsyncIterator[Endpoints]:
        last: Endpoints | None = None
        failed = False
        while True:
            try:
                now = await self._resolve()
            except OSError as error:
                if not failed:
                    _log.warning("%s: %s; the servers stay as they are", self.name, error)
                failed = True
            else:
                failed = False
                if now != last:
                    last = now
                    yield now
            await asyncio.sleep(self._interval_s)

    async def _resolve(self) -> Endpoints:
        origin = self._endpoint
        scheme, _, key = origin.url.partition("://")
        port = int(key.rpartition(":")[2])
        found = await asyncio.get_running_loop().getaddrinfo(
            origin.host, port, type=socket.SOCK_STREAM
        )
        addresses = {str(address[4][0]) for address in found}
        return frozenset(
            WorkerEndpoint(
                origin.role,
                f"{scheme}://{f'[{a}]' if ':' in a else a}:{port}",
                origin.bootstrap_port,
                origin.host if scheme == "https" else "",
            )
            for a in addresses
        )


def read_workers(path: Path) -> Endpoints:
    """The servers in a file.

    Raises:
        InputError: unreadable, malformed, or a server named twice.
    """
    document = read_document(path, "--workers-file")
    where = f"--workers-file: {path}"
    refuse_unknown(document, [role.value for role in Role], where)
    endpoints: list[WorkerEndpoint] = []
    for role in Role:
        items = document.get(role.value, [])
        if not isinstance(items, list):
            raise InputError(f"{where}: {role.value}: it must be a list")
        for item in items:
            words = item if isinstance(item, list) else [item]
            if not 1 <= len(words) <= (2 if role is Role.PREFILL else 1):
                raise InputError(f"{where}: {role.value}: an item is not URL or [URL, PORT]")
            port = words[1] if len(words) == 2 else None
            endpoints.append(parse_endpoint(role, words[0], port, f"{where}: {role.value}"))
    for role in Role:
        if role.value not in document:
            text = f"it names no {role.value} server; write {role.value}: [] if that is meant"
            raise InputError(f"{where}: {text}")
    keys = [endpoint.key for endpoint in endpoints]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"{where}: {key} is named more than once")
    return frozenset(endpoints)


class WorkerDiscovery:
    """All servers that this process may use: the sources' union, bounded by `--allow-worker`,
    less what the administrator removed."""

    def __init__(self, config: RouterConfig, changed: Changed) -> None:
        workers = config.workers
        self._config = config
        self._changed = changed
        self._by_source: dict[str, Endpoints] = {}
        self._removed: set[str] = set()  # keys; a source still names them
        self._current: Endpoints = frozenset()
        self.sources: list[DiscoverySource] = [StaticSource(workers)]
        if workers.workers_file is not None:
            self.sources.append(FileSource(workers.workers_file))
        self.sources += [
            DnsSource(endpoint, workers.dns_interval_s)
            for endpoint in (*workers.prefill_dns, *workers.decode_dns)
        ]

    @property
    def endpoints(self) -> Endpoints:
        """The servers in use now."""
        return self._current

    async def run(self, ready: asyncio.Event | None = None) -> None:
        """Follow every source until cancelled.

        Args:
            ready: set once every source but DNS has answered.

        Raises:
            InputError: the file of servers is malformed at the start.
        """
        self.start()
        if ready is not None:
            ready.set()
        async with asyncio.TaskGroup() as group:
            for source in self.sources:
                group.create_task(self._follow(source), name=f"discovery {source.name}")

    def start(self) -> None:
        """Take the servers of flags and file, without waiting.

        Raises:
            InputError: the file of servers is malformed.
        """
        workers = self._config.workers
        self._by_source["flags"] = StaticSource(workers).endpoints
        if workers.workers_file is not None:
            self._by_source["file"] = self._permitted("file", read_workers(workers.workers_file))
        self._update()

    def add(self, endpoint: WorkerEndpoint) -> None:
        """Add a server on the administrator's behalf.

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
        if any(known.key == endpoint.key for known in self._current):
            raise InputError(f"worker {endpoint.key}: it is known already")
        self._removed.discard(endpoint.key)
        others = {e for e in self._by_source.get("admin", ()) if e.key != endpoint.key}
        named_elsewhere = any(
            endpoint in endpoints for name, endpoints in self._by_source.items() if name != "admin"
        )
        self._by_source["admin"] = frozenset(others if named_elsewhere else {*others, endpoint})
        self._update()

    def remove(self, key: str) -> None:
        """Remove a server, whatever named it, until it is added again or the router restarts.

        Raises:
            KeyError: it is not known.
        """
        if all(endpoint.key != key for endpoint in self._current):
            raise KeyError(key)
        admin = self._by_source.get("admin", frozenset())
        self._by_source["admin"] = frozenset(e for e in admin if e.key != key)
        if any(e.key == key for endpoints in self._by_source.values() for e in endpoints):
            self._removed.add(key)
        self._update()

    async def _follow(self, source: DiscoverySource) -> None:
        while True:
            try:
                async for endpoints in source.watch():
                    permitted = self._permitted(source.name, endpoints)
                    if self._by_source.get(source.name) != permitted:
                        self._by_source[source.name] = permitted
                        self._update()
                return
            except Exception:
                # As when the kernel has no file watches left. The servers known stay.
                _log.exception("discovery %s: failed; again in %g s", source.name, _AGAIN_S)
                await asyncio.sleep(_AGAIN_S)

    def _permitted(self, name: str, endpoints: Endpoints) -> Endpoints:
        patterns = self._config.workers.allow_worker
        permitted = frozenset(e for e in endpoints if allowed(patterns, e))
        for endpoint in sorted(endpoints - permitted):
            _log.error("%s: %s is not in --allow-worker; not used", name, endpoint.key)
        return permitted

    def _update(self) -> None:
        wanted = unite(self._by_source.values(), self._removed)
        added, gone = wanted - self._current, self._current - wanted
        if not added and not gone:
            return
        self._current = wanted
        for endpoint in sorted(added):
            _log.info("%s server %s: added", endpoint.role, endpoint.key)
        for endpoint in sorted(gone):
            _log.info("%s server %s: removed", endpoint.role, endpoint.key)
        self._changed(added, gone)


def unite(sources: Iterable[Endpoints], without: Iterable[str] = ()) -> Endpoints:
    """The servers of all sources, one per address; where two differ on one, the first source's."""
    hidden = set(without)
    united: dict[str, WorkerEndpoint] = {}
    for endpoints in sources:
        for endpoint in sorted(endpoints):
            if endpoint.key in hidden:
                continue
            if united.setdefault(endpoint.key, endpoint) != endpoint:
                _log.error("%s: named as two different servers", endpoint.key)
    return frozenset(united.values())
