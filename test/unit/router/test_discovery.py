"""Where servers come from, and how the registry puts it together."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kairos.errors import InputError
from kairos.router.config.settings import RouterConfig, Workers
from kairos.router.workers import discovery
from kairos.router.workers.discovery import (
    Endpoints,
    WorkerDiscovery,
    read_workers,
    unite,
    watch_name,
)
from kairos.router.workers.endpoint import Role, WorkerEndpoint, parse_endpoint, parse_pattern

P1, P2 = (WorkerEndpoint("prefill", f"http://10.0.0.{i}:1", 8998) for i in (1, 2))
D1, D2, D3 = (WorkerEndpoint("decode", f"http://10.0.1.{i}:1") for i in (1, 2, 3))
FILE = "prefill: [['http://10.0.0.1:1', 8998]]\ndecode: ['http://10.0.1.1:1']\n"


class Seen:
    """Collects what a registry tells."""

    def __init__(self) -> None:
        self.calls: list[tuple[frozenset, frozenset]] = []
        self._called = asyncio.Event()

    def __call__(self, added: frozenset, gone: frozenset) -> None:
        self.calls.append((added, gone))
        self._called.set()

    async def next(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.calls) < count:
                self._called.clear()
                await self._called.wait()


def config(**workers: object) -> RouterConfig:
    workers = {"prefill": (P1,), "decode": (D1,), **workers}
    return RouterConfig(workers=Workers(**workers))


def test_flags_are_known_at_once() -> None:
    seen = Seen()
    registry = WorkerDiscovery(config(), seen)
    registry.start()
    assert seen.calls == [(frozenset({P1, D1}), frozenset())]
    assert registry.endpoints == {P1, D1}


async def test_a_file_is_followed_and_a_bad_state_of_it_ignored(tmp_path: Path, caplog) -> None:
    path = tmp_path / "workers.yaml"
    path.write_text(FILE)
    seen = Seen()
    registry = WorkerDiscovery(RouterConfig(workers=Workers(workers_file=path)), seen)
    task = asyncio.create_task(registry.run())
    await seen.next(1)
    assert seen.calls[0] == (frozenset({P1, D1}), frozenset())
    path.write_text("prefill: [")
    while "the servers stay as they are" not in caplog.text:
        # The watch may begin after the write; another one is seen then.
        path.touch()
        await asyncio.sleep(0.05)
    fresh = tmp_path / "fresh"
    fresh.write_text("prefill: [['http://10.0.0.1:1', 8998]]\ndecode: [10.0.1.2:1]\n")
    fresh.rename(path)
    await seen.next(2)
    assert seen.calls[1] == (frozenset({D2}), frozenset({D1}))
    assert len(seen.calls) == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_file_that_is_written_in_parts_is_taken_whole(tmp_path: Path) -> None:
    path = tmp_path / "workers.yaml"
    first = "prefill: [['http://10.0.0.1:1', 8998]]\ndecode:\n- http://10.0.1.1:1\n"
    path.write_text(f"{first}- http://10.0.1.2:1\n")
    seen = Seen()
    settings = Workers(workers_file=path)
    task = asyncio.create_task(WorkerDiscovery(RouterConfig(workers=settings), seen).run())
    await seen.next(1)
    await asyncio.sleep(0.5)  # the watch has begun
    with path.open("w") as file:
        for part in (first, "- http://10.0.1.2:1\n", "- http://10.0.1.3:1\n"):
            file.write(part)
            file.flush()
            await asyncio.sleep(0.15)
    await seen.next(2)
    assert seen.calls[1:] == [(frozenset({D3}), frozenset())]
    task.cancel()


async def test_a_file_behind_a_link_is_followed(tmp_path: Path) -> None:
    # As Kubernetes updates a mounted ConfigMap.
    for name, text in (("v1", FILE), ("v2", FILE.replace("10.0.1.1", "10.0.1.3"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "workers.yaml").write_text(text)
    (tmp_path / "..data").symlink_to("v1")
    (tmp_path / "workers.yaml").symlink_to("..data/workers.yaml")
    seen = Seen()
    settings = Workers(workers_file=tmp_path / "workers.yaml")
    task = asyncio.create_task(WorkerDiscovery(RouterConfig(workers=settings), seen).run())
    await seen.next(1)
    await asyncio.sleep(0.1)
    (tmp_path / "..tmp").symlink_to("v2")
    (tmp_path / "..tmp").rename(tmp_path / "..data")
    await seen.next(2)
    assert seen.calls[1] == (frozenset({D3}), frozenset({D1}))
    task.cancel()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prefil: []", "unknown field 'prefil'; known are prefill, decode"),
        ("prefill: http://a:1", "prefill: it must be a list"),
        ("decode: [[http://a:1, 2]]", "decode: ['http://a:1', 2] is not an address like"),
        ("decode: [a]", "is not an address like"),
        ("decode: [1]", "1 is not an address like"),
        ("decode: [2001-99-99]", "month must be in 1..12"),  # YAML takes it for a date
        ("decode: [{a: 1}]", "{'a': 1} is not an address like"),
        ("prefill: ['a:1']\ndecode: ['a:1']", "a:1 is named more than once"),
        ("prefill: [['a:1', x]]", "'x' is not a port"),
    ],
)
def test_a_bad_file_stops_the_start(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "workers.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_workers(path)
    assert says in str(caught.value)
    with pytest.raises(InputError):
        WorkerDiscovery(RouterConfig(workers=Workers(workers_file=path)), Seen()).start()


def resolver(monkeypatch, answers: list) -> None:
    """Let look-ups answer one item after the other; the last one for good."""

    async def getaddrinfo(self: object, host: str, port: int, **_: object) -> list:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        family = socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address, port)) for address in answer]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)


async def test_every_address_of_a_name_is_a_server(monkeypatch, caplog) -> None:
    gone = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    answers = [["10.0.0.1", "fd00::1"], gone, gone, ["10.0.0.1"]]
    resolver(monkeypatch, answers)
    watch = watch_name(parse_endpoint(Role.PREFILL, "http://p.svc:1", 8998, ""), 0.01)
    assert await anext(watch) == {P1, WorkerEndpoint("prefill", "http://[fd00::1]:1", 8998)}
    assert await anext(watch) == {P1}
    assert caplog.text.count("the servers stay as they are") == 1
    await watch.aclose()


async def test_names_are_followed_and_bounded(monkeypatch, caplog) -> None:
    resolver(monkeypatch, [["10.0.1.1"], ["10.0.1.1", "10.0.1.2", "192.168.0.1"]])
    seen = Seen()
    settings = Workers(
        prefill=(P1,),
        decode_dns=(WorkerEndpoint("decode", "http://d.svc:1"),),
        dns_interval_s=0.05,
        allow_worker=(parse_pattern("10.0.0.0/8:1", ""),),
    )
    task = asyncio.create_task(WorkerDiscovery(RouterConfig(workers=settings), seen).run())
    await seen.next(3)
    assert seen.calls == [
        (frozenset({P1}), frozenset()),
        (frozenset({D1}), frozenset()),
        (frozenset({D2}), frozenset()),
    ]
    assert "192.168.0.1:1 is not in --allow-worker" in caplog.text
    task.cancel()


def test_the_administrator_adds_within_bounds_and_removes_anything() -> None:
    seen = Seen()
    registry = WorkerDiscovery(config(allow_worker=(parse_pattern("10.0.0.0/8:1", ""),)), seen)
    registry.start()
    registry.add(D2)
    registry.remove(D1.key)  # a flag names it
    assert registry.endpoints == {P1, D2}
    registry.add(D1)
    registry.remove(D2.key)
    assert registry.endpoints == {P1, D1}
    for endpoint, says in (
        (WorkerEndpoint("decode", "http://169.254.169.254:1"), "it is not in --allow-worker"),
        (WorkerEndpoint("decode", "http://10.0.1.1:2"), "it is not in --allow-worker"),
        (D1, "it is known already"),
    ):
        with pytest.raises(InputError, match=says):
            registry.add(endpoint)
    with pytest.raises(KeyError):
        registry.remove(D2.key)
    with pytest.raises(InputError, match="the router has no --allow-worker"):
        WorkerDiscovery(config(), Seen()).add(D2)


def test_one_address_is_one_server(caplog) -> None:
    other = WorkerEndpoint("prefill", D1.url)
    assert unite([frozenset({D1}), frozenset({other, P1})]) == {D1, P1}
    assert "named as two different servers" in caplog.text


async def test_a_source_that_fails_is_asked_again_and_stops_no_other(monkeypatch, caplog) -> None:
    monkeypatch.setattr(discovery, "_AGAIN_S", 0.01)

    asked = 0

    async def failing() -> AsyncIterator[Endpoints]:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise RuntimeError("no watches left")
        yield frozenset({D2})

    registry = WorkerDiscovery(config(), Seen())
    registry.start()
    registry.sources["failing"] = failing
    running = asyncio.ensure_future(registry.run())
    async with asyncio.timeout(5.0):
        while D2 not in registry.endpoints:
            await asyncio.sleep(0.005)
    assert asked == 3
    assert "no watches left" in caplog.text
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
