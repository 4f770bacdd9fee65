"""The endpoints beside generation, with and without keys."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kairos.router.config.settings import (
    Limits,
    Observability,
    Overload,
    Scheduling,
    Security,
    Workers,
)
from kairos.router.edge.keys import new_key
from kairos.router.request.outcome import Outcome
from kairos.router.workers.endpoint import parse_pattern
from kairos.slo import parse_class
from support.router_engine import fakes, until
from support.router_running import config_for, running

BODY = {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 2}}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_health_ready_metrics_models() -> None:
    async with fakes() as cluster, running(config_for(cluster)) as up:
        for path in ("/health", "/ready", "/metrics", "/v1/models", "/model_info", "/openapi.json"):
            async with up.session.get(up.url + path) as answer:
                assert answer.status == 200, path
        async with up.post(BODY) as answer:
            await answer.read()
        await up.quiet()
        async with up.session.get(up.url + "/metrics") as answer:
            text = await answer.text()
        assert 'outcome="completed"' in text
        assert "kairos_router_live_rooms 0.0" in text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/generate", 405),
        ("POST", "/abort_request", 404),
        ("DELETE", "/workers/1.2.3.4:5", 403),
        ("POST", "/workers", 403),
    ],
)
async def test_nothing_else_is_there(method: str, path: str, status: int) -> None:
    async with (
        fakes() as cluster,
        running(config_for(cluster)) as up,
        up.session.request(method, up.url + path) as answer,
    ):
        assert answer.status == status
        assert (await answer.json())["error"]["message"]


async def test_without_a_pair_it_is_not_ready() -> None:
    async with fakes() as cluster:
        await cluster.decode[0].stop()
        async with running(config_for(cluster), ready=False) as up:
            async with up.session.get(up.url + "/ready") as answer:
                assert answer.status == 503
            async with up.post(BODY) as answer:
                assert answer.status == 503
                assert "Retry-After" in answer.headers
            assert [end.outcome for end in up.ends] == [Outcome.UNAVAILABLE]


async def test_keys_tenants_and_the_servers_own_key(tmp_path: Path) -> None:
    key, hashed = new_key()
    admin, admin_hash = new_key()
    keys, admins, engine = tmp_path / "keys.yaml", tmp_path / "admin", tmp_path / "engine"
    keys.write_text(f"tenants: {{a: {{keys: ['{hashed}'], classes: [default, fast]}}}}\n")
    admins.write_text(admin_hash)
    engine.write_text("engine-secret")
    async with fakes() as cluster:
        workers = config_for(cluster).workers
        config = config_for(
            cluster,
            security=Security(keys_file=keys, admin_key_file=admins, engine_key_file=engine),
            scheduling=Scheduling(
                slo_class=(parse_class("fast=100,10", "t"), parse_class("slow=9000,90", "t"))
            ),
            workers=Workers(
                **{name: getattr(workers, name) for name in ("prefill", "decode")},
                allow_worker=(parse_pattern("127.0.0.1:*", "t"),),
                health_interval_s=0.1,
            ),
        )
        async with running(config) as up:
            for headers, status in (({}, 401), (bearer("x"), 401), (bearer(key), 200)):
                async with up.post(BODY, headers=headers) as answer:
                    assert answer.status == status
            sent = cluster.decode[0].headers[-1]
            assert sent["authorization"] == "Bearer engine-secret"
            fast = {**bearer(key), "x-kairos-slo-class": "fast"}
            async with up.post(BODY, headers=fast) as answer:
                applied = answer.headers["x-kairos-slo-applied"]
                assert applied == "ttft-ms=100, tpot-ms=10, class=fast"
            async with up.post(BODY, headers={**bearer(key), "x-kairos-slo-class": "slow"}) as no:
                assert no.status == 400
            async with up.session.get(up.url + "/workers", headers=bearer(admin)) as answer:
                assert len((await answer.json())["workers"]) == 2
            async with up.session.get(up.url + "/workers", headers=bearer(key)) as answer:
                assert answer.status == 401
            async with up.session.post(up.url + "/flush_cache", headers=bearer(admin)) as answer:
                assert answer.status == 200
            assert cluster.prefill[0].flushed == 1
            more = {"role": "decode", "url": "http://127.0.0.1:9"}
            async with up.session.post(
                up.url + "/workers", json=more, headers=bearer(admin)
            ) as answer:
                assert answer.status == 201
            url = f"{up.url}/workers/127.0.0.1:9"
            async with up.session.delete(url, headers=bearer(admin)) as answer:
                assert answer.status == 200
            await until(lambda: "127.0.0.1:9" not in up.router.registry.workers)


async def test_a_full_queue_answers_429_and_nothing_is_left() -> None:
    async with fakes() as cluster:
        config = config_for(cluster, limits=Limits(max_queued_requests=1))
        async with running(config) as up:
            for instance in up.router.registry.workers.values():
                up.router.dispatcher.set_available(instance.key, False)
            requests = [asyncio.ensure_future(_status(up)) for _ in range(4)]
            await until(lambda: len(up.ends) == 3)
            for instance in up.router.registry.workers.values():
                up.router.dispatcher.set_available(instance.key, True)
            up.router.waiting.schedule_dispatch()
            assert sorted(await asyncio.gather(*requests)) == [200, 429, 429, 429]
            await up.quiet()


async def _status(up, body: dict[str, Any] = BODY) -> int:
    async with up.post(body) as answer:
        await answer.read()
        return int(answer.status)


@pytest.mark.parametrize("stream", [False, True])
async def test_servers_are_named_in_answers_only_where_that_is_wanted(stream: bool) -> None:
    async with fakes() as cluster:
        for shown in (False, True):
            observability = Observability(access_log="off", show_servers=shown)
            config = config_for(cluster, observability=observability)
            async with running(config) as up, up.post({**BODY, "stream": stream}) as answer:
                await answer.read()
                names = [answer.headers.get(f"x-kairos-{leg}") for leg in ("prefill", "decode")]
            there = [cluster.prefill[0].url, cluster.decode[0].url]
            assert names == (
                [url.removeprefix("http://") for url in there] if shown else [None] * 2
            )


async def test_bodies_being_read_are_bounded_together() -> None:
    async with fakes() as cluster:
        config = config_for(
            cluster,
            limits=Limits(max_reading_mib=1, max_body_mib=1),
            overload=Overload(overload_status=503),
        )
        async with running(config) as up:
            host, port = up.url.removeprefix("http://").split(":")
            _, writer = await asyncio.open_connection(host, int(port))
            head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
            writer.write(head % (1 << 20))
            await until(lambda: len(up.router.handler.active) == 1)
            assert await _status(up) == 200  # what is only declared takes nothing
            writer.write(b" " * ((1 << 20) - 10))
            await until(lambda: up.router.bodies.held == (1 << 20) - 10)
            async with up.post(BODY) as answer:
                assert answer.status == 503
                assert answer.headers["x-kairos-reason"] == "reading_bytes"
                assert answer.headers["Retry-After"] == "1"
            writer.close()
            await until(lambda: len(up.ends) == 3)
            assert await _status(up) == 200
            await up.quiet()
            _, *outcomes = [end.outcome for end in up.ends]
            assert outcomes == [Outcome.REJECTED_FULL, Outcome.CLIENT_GONE, Outcome.COMPLETED]


async def test_bodies_being_counted_are_in_that_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fakes() as cluster:
        limits = Limits(max_reading_mib=1, max_body_mib=1)
        async with running(config_for(cluster, limits=limits)) as up:
            counts, count = asyncio.Event(), up.router.counter.count

            async def slow(path: str, body: dict[str, Any]) -> Any:
                await counts.wait()
                return await count(path, body)

            monkeypatch.setattr(up.router.counter, "count", slow)
            large = {**BODY, "extra_key": "x" * (1 << 19)}
            first = asyncio.ensure_future(_status(up, large))
            await until(lambda: up.router.bodies.held > 1 << 19)
            assert await _status(up, large) == 429
            counts.set()
            assert await first == 200
            await up.quiet()
            assert up.router.bodies.held == 0


@pytest.mark.parametrize("first", [b"", b'3\r\n{"a\r\n'])
async def test_a_body_with_a_malformed_chunk_is_refused_at_once(first: bytes) -> None:
    async with fakes() as cluster, running(config_for(cluster)) as up:
        host, port = up.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(first)
        await until(lambda: len(up.router.handler.active) == 1)
        writer.write(b"nonsense\r\n")
        async with asyncio.timeout(5.0):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'"code":"http_malformed"' in answer
        assert answer.count(b"HTTP/1.1 ") == 1
        writer.close()
        await until(lambda: len(up.ends) == 1)
        assert up.ends[0].outcome is Outcome.INVALID
