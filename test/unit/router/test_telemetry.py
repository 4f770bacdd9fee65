"""How the router hears of its instances' load; sockets and servers are real."""

import asyncio
import ssl

import orjson
import pytest
import zmq
from aiohttp import web

from kairos.router.upstream.http_client import ConnectionPool
from kairos.router.workers.endpoint import WorkerEndpoint
from kairos.router.workers.server_info import ServerInfo, read_server_info
from kairos.router.workers.telemetry import Telemetry, reachable, read_loads, read_report
from kairos.telemetry import TelemetryReport, encoder


def report(**fields) -> TelemetryReport:
    known = {
        "epoch": "e",
        "sequence": 1,
        "role": "prefill",
        "running": 2,
        "waiting": 1,
        "max_running": 64,
        "kv_used_tokens": 500,
        "kv_capacity_tokens": 9_000,
        "uncached_tokens": 70,
        "backlog_s": 0.5,
        "calibration": 1.5,
    }
    return TelemetryReport(**{**known, **fields})


def pool() -> ConnectionPool:
    return ConnectionPool(ssl.create_default_context(), 1.0)


def server(port: int) -> WorkerEndpoint:
    return WorkerEndpoint("prefill", f"http://127.0.0.1:{port}")


def told(telemetry: object) -> ServerInfo | None:
    return read_server_info(
        orjson.dumps({"internal_states": [{"kairos": {"telemetry": telemetry}}]})
    )


@pytest.mark.parametrize(
    ("publisher", "expected"),
    [
        ("tcp://10.0.0.7:5555", "tcp://10.0.0.7:5555"),
        ("tcp://0.0.0.0:5555", "tcp://engine.example:5555"),
        ("tcp://[::]:5555", "tcp://engine.example:5555"),
    ],
)
def test_an_engine_that_publishes_on_all_addresses_is_reached_at_its_host(publisher, expected):
    endpoint = WorkerEndpoint("decode", "http://engine.example:30000")
    assert reachable(told(publisher).telemetry, endpoint) == expected


@pytest.mark.parametrize("publisher", ["ipc:///tmp/x", "tcp://evil;x:1", None, 7])
def test_what_is_no_address_is_not_connected_to(publisher):
    assert told(publisher).telemetry is None


def test_a_report_becomes_a_load():
    load = read_report(encoder.encode(report()), 12.5)
    assert (load.measured_s, load.backlog_s, load.kv_used_tokens) == (12.5, 0.5, 500)
    assert load.epoch == "e"
    decode = read_report(encoder.encode(report(role="decode", slack_s=-0.1)), 0.0)
    assert (decode.backlog_s, decode.uncached_tokens, decode.slack_s) == (None, None, -0.1)


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"\xff" * 9, encoder.encode(report(version=2)), b"\x93\x01\x02\x03"]
)
def test_what_is_no_report_is_nothing(data):
    assert read_report(data, 0.0) is None


def test_plain_loads_are_summed_over_ranks():
    rank = {
        "num_running_reqs": 1,
        "num_waiting_reqs": 2,
        "num_total_tokens": 300,
        "max_total_num_tokens": 1_000,
        "max_running_requests": 8,
        "num_waiting_uncached_tokens": 40,
    }
    load = read_loads(orjson.dumps({"loads": [rank, rank]}), 1.0)
    assert (load.running, load.waiting, load.kv_used_tokens) == (2, 4, 600)
    assert (load.kv_capacity_tokens, load.max_running, load.uncached_tokens) == (2_000, 16, 80)
    partial = read_loads(orjson.dumps({"loads": [{"num_running_reqs": 1}]}), 1.0)
    assert (partial.running, partial.kv_capacity_tokens) == (1, None)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"loads":[]}', b'{"loads":[3]}', b'{"x":1}'])
def test_what_is_no_load_is_nothing(data):
    assert read_loads(data, 0.0) is None


async def until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_reports_arrive_and_stop_when_forgotten():
    context = zmq.Context()
    socket = context.socket(zmq.PUB)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    heard: list = []
    telemetry = Telemetry(lambda key, load: heard.append((key, load)), pool())
    telemetry.watch(server(1), f"tcp://0.0.0.0:{port}")

    async def publish() -> None:
        while True:
            socket.send(b"garbage")
            await asyncio.sleep(0.01)
            socket.send(encoder.encode(report()))
            await asyncio.sleep(0.01)

    publishing = asyncio.create_task(publish())
    try:
        shown = telemetry.snapshot
        await until(lambda: heard and shown()[server(1).key]["failed"])
        assert heard[0][0] == server(1).key
        assert heard[0][1].running == 2
        telemetry.forget(server(1).key)
        await asyncio.sleep(0)
        count = len(heard)
        await asyncio.sleep(0.1)
        assert len(heard) == count
        assert shown() == {}
    finally:
        publishing.cancel()
        await telemetry.close()
        socket.close(linger=0)
        context.term()


async def test_plain_engines_are_asked_again_and_again_whatever_they_answer():
    answers = [
        lambda: web.Response(status=500),
        lambda: web.Response(body=b"no json"),
        lambda: web.json_response({"loads": [{"num_running_reqs": 7}]}),
    ]
    asked = []

    async def loads(request: web.Request) -> web.Response:
        asked.append(request.query.get("include"))
        return answers[min(len(asked), len(answers)) - 1]()

    app = web.Application()
    app.router.add_get("/v1/loads", loads)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    heard: list = []
    telemetry = Telemetry(lambda _, load: heard.append(load), pool(), poll_s=0.01)
    telemetry.watch(server(port), None)
    telemetry.watch(server(1), None)
    try:
        await until(lambda: len(heard) >= 2 and telemetry.snapshot()[server(1).key]["failed"] >= 2)
        assert heard[0].running == 7
        assert telemetry.snapshot()[server(port).key]["failed"] == 2
        assert set(asked) == {"core"}
    finally:
        await telemetry.close()
        await runner.cleanup()


async def test_watching_twice_changes_nothing_and_a_new_endpoint_replaces_the_old():
    telemetry = Telemetry(lambda *_: None, pool())
    telemetry.watch(server(1), "tcp://127.0.0.1:9")
    first = telemetry._feeds[server(1).key]
    telemetry.watch(server(1), "tcp://127.0.0.1:9")
    assert telemetry._feeds[server(1).key] is first
    telemetry.watch(server(1), "tcp://127.0.0.1:10")
    assert telemetry.snapshot()[server(1).key]["endpoint"] == "tcp://127.0.0.1:10"
    await telemetry.close()
    assert first.task.done()
