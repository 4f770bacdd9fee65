"""How the router hears of its instances' load; sockets and servers are real."""

import asyncio

import aiohttp
import orjson
import pytest
import zmq
from aiohttp import web

from kairos.router.workers.telemetry import Telemetry, endpoint_of, read_loads, read_report
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


def info(endpoint: object) -> dict:
    return {"internal_states": [{"kairos": {"telemetry": endpoint}}]}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("tcp://10.0.0.7:5555", "tcp://10.0.0.7:5555"),
        ("tcp://0.0.0.0:5555", "tcp://engine.example:5555"),
        ("tcp://[::]:5555", "tcp://engine.example:5555"),
        ("ipc:///tmp/x", None),
        ("tcp://evil;x:1", None),
        (None, None),
        (7, None),
    ],
)
def test_an_engine_tells_where_it_publishes(told, expected):
    assert endpoint_of(info(told), "http://engine.example:30000") == expected


@pytest.mark.parametrize("info", [{}, {"internal_states": 3}, {"internal_states": [None, {}]}])
def test_a_plain_engine_does_not(info):
    assert endpoint_of(info, "http://h:1") is None


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
    async with aiohttp.ClientSession() as session:
        telemetry = Telemetry(lambda key, load: heard.append((key, load)), session)
        telemetry.watch("p0", "http://127.0.0.1:1", info(f"tcp://0.0.0.0:{port}"))

        async def publish() -> None:
            while True:
                socket.send(b"garbage")
                await asyncio.sleep(0.01)
                socket.send(encoder.encode(report()))
                await asyncio.sleep(0.01)

        publishing = asyncio.create_task(publish())
        try:
            shown = telemetry.snapshot
            await until(lambda: heard and shown()["p0"]["failed"])
            assert heard[0][0] == "p0"
            assert heard[0][1].running == 2
            telemetry.forget("p0")
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
    async with aiohttp.ClientSession() as session:
        telemetry = Telemetry(lambda _, load: heard.append(load), session, poll_s=0.01)
        telemetry.watch("d0", f"http://127.0.0.1:{port}")
        telemetry.watch("gone", "http://127.0.0.1:1")
        try:
            await until(lambda: len(heard) >= 2 and telemetry.snapshot()["gone"]["failed"] >= 2)
            assert heard[0].running == 7
            assert telemetry.snapshot()["d0"]["failed"] == 2
            assert set(asked) == {"core"}
        finally:
            await telemetry.close()
            await runner.cleanup()


async def test_watching_twice_changes_nothing_and_a_new_endpoint_replaces_the_old():
    async with aiohttp.ClientSession() as session:
        telemetry = Telemetry(lambda *_: None, session)
        telemetry.watch("p0", "http://127.0.0.1:1", info("tcp://127.0.0.1:9"))
        first = telemetry._watches["p0"]
        telemetry.watch("p0", "http://127.0.0.1:1", info("tcp://127.0.0.1:9"))
        assert telemetry._watches["p0"] is first
        telemetry.watch("p0", "http://127.0.0.1:1", info("tcp://127.0.0.1:10"))
        assert telemetry.snapshot()["p0"]["endpoint"] == "tcp://127.0.0.1:10"
        await telemetry.close()
        assert first.task.done()
