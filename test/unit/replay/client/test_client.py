"""The client against misbehaving servers: one outcome per request, and no send lag."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from kairos.errors import InputError
from kairos.replay.client.api import CompletionsApi
from kairos.replay.client.client import ReplayClient
from kairos.replay.client.job import ClientConfig, WorkerJob
from kairos.replay.client.record import RequestOutcome, RequestRecord
from kairos.replay.client.target import Endpoint, PairTarget, Target, UrlTarget
from kairos.replay.plan.plan import PlannedRequest
from kairos.replay.plan.prompts import Prompts
from support.generate_stand_in import (
    Behaviour,
    GenerateStandIn,
    abort,
    break_off,
    error_event,
    first_then_hang,
    hang,
    no_stream,
    refuse,
    stop_early,
)
from support.replay import planned


@pytest.fixture
async def engine() -> AsyncIterator[GenerateStandIn]:
    engine = GenerateStandIn()
    app = web.Application(client_max_size=1 << 24)
    app.router.add_post("/generate", engine.handle)
    server = TestServer(app)
    await server.start_server()
    engine.url = str(server.make_url("")).rstrip("/")
    yield engine
    await server.close()


async def replay(
    requests: list[PlannedRequest], target: Target, **options: object
) -> list[RequestRecord]:
    config = ClientConfig(**options)  # type: ignore[arg-type]  # options vary
    return await ReplayClient(WorkerJob(target, Prompts(1024), config, "t", requests)).run()


def plan(count: int, gap_s: float = 0.0, output_tokens: int = 3) -> list[PlannedRequest]:
    return [planned(i, i * gap_s, output_tokens=output_tokens) for i in range(count)]


async def test_good_stream_is_recorded(engine: GenerateStandIn) -> None:
    (record,) = await replay([planned(0, input_tokens=700, output_tokens=5)], UrlTarget(engine.url))
    assert (record.outcome, record.got_tokens, record.cached_tokens) == (RequestOutcome.OK, 5, 2)
    assert record.ttft_ms is not None
    assert record.ttft_ms > 0
    assert len(record.token_gaps_ms) == 4
    body = engine.bodies[0]
    assert len(body["input_ids"]) == 700
    assert body["sampling_params"]["max_new_tokens"] == 5
    assert body["sampling_params"]["ignore_eos"] is True
    assert body["stream"] is True
    assert body["rid"] == record.rid == "t-0000000"
    assert "bootstrap_room" not in body


async def test_slo_is_sent_only_when_configured(engine: GenerateStandIn) -> None:
    request = planned(0, ttft_ms=750, tpot_ms=40, slo_class="batch")
    await replay([request], UrlTarget(engine.url), send_slo=True)
    await replay([request], UrlTarget(engine.url), send_slo=False)
    sent = engine.bodies[0]["sampling_params"]["custom_params"]["kairos"]
    assert sent == {"ttft_ms": 750, "tpot_ms": 40, "elapsed_ms": 0, "class": "batch"}
    assert "custom_params" not in engine.bodies[1]["sampling_params"]


FAILURES: list[tuple[Behaviour, RequestOutcome, str, int]] = [
    (refuse, RequestOutcome.HTTP_ERROR, "status 400: .*-1 is not allowed", 0),
    (hang, RequestOutcome.TIMEOUT, "no end after 0.4 s", 0),
    (first_then_hang, RequestOutcome.TIMEOUT, "no end after 0.4 s", 1),
    (break_off, RequestOutcome.CONNECTION_ERROR, ".", 1),
    (stop_early, RequestOutcome.INCOMPLETE, "1 of 3 tokens", 1),
    (abort, RequestOutcome.ABORTED, "KV transfer failed", 0),
    (error_event, RequestOutcome.STREAM_ERROR, "too long", 0),
    (no_stream, RequestOutcome.STREAM_ERROR, "a router put this here", 0),
]


async def test_every_failure_has_its_outcome_and_spares_other_requests(
    engine: GenerateStandIn,
) -> None:
    engine.behaviours = {2 * i + 1: behaviour for i, (behaviour, *_) in enumerate(FAILURES)}
    records = await replay(plan(2 * len(FAILURES) + 1), UrlTarget(engine.url), timeout_s=0.4)
    for i, (_, outcome, reason, got) in enumerate(FAILURES):
        record = records[2 * i + 1]
        assert (record.outcome, record.got_tokens) == (outcome, got), record.reason
        assert re.search(reason, record.reason), record.reason
    assert Counter(r.outcome for r in records)[RequestOutcome.OK] == len(FAILURES) + 1
    assert len({r.rid for r in records}) == len(records)


async def test_refused_connection_is_a_connection_error() -> None:
    records = await replay(plan(3), UrlTarget(f"http://127.0.0.1:{unused_port()}"))
    assert [r.outcome for r in records] == [RequestOutcome.CONNECTION_ERROR] * 3
    assert all(r.send_lag_ms is None for r in records)
    assert "Connect" in records[0].reason


async def test_server_that_never_answers_delays_no_send(engine: GenerateStandIn) -> None:
    """60 requests, 5 ms apart, none ever answered: a client with a connection limit or any
    back-pressure would still be sending when the first times out."""
    engine.behaviours = dict.fromkeys(range(60), hang)
    records = await replay(plan(60, gap_s=0.005), UrlTarget(engine.url), timeout_s=1.0)
    assert {r.outcome for r in records} == {RequestOutcome.TIMEOUT}
    assert len(engine.bodies) == 60
    lags = sorted(r.send_lag_ms for r in records if r.send_lag_ms is not None)
    assert len(lags) == 60
    assert lags[30] < 300  # of a second of silence; generous for a busy machine


async def test_requests_leave_in_order_and_not_before_they_are_due(engine: GenerateStandIn) -> None:
    records = await replay(plan(20, gap_s=0.004), UrlTarget(engine.url))
    assert [r.arrival_s for r in records] == pytest.approx([0.004 * i for i in range(20)])
    assert all(r.send_lag_ms is not None and r.send_lag_ms >= 0 for r in records)


async def test_budget_cuts_requests_in_flight_and_unsent(engine: GenerateStandIn) -> None:
    engine.behaviours = {0: hang}
    requests = [planned(0, 0.0), planned(1, 0.1), planned(2, 30.0)]
    records = await replay(requests, UrlTarget(engine.url), budget_s=0.5)
    assert [r.outcome for r in records] == [
        RequestOutcome.CUT,
        RequestOutcome.OK,
        RequestOutcome.CUT,
    ]
    assert "budget of 0.5 s" in records[0].reason
    assert records[2].reason == "never sent"
    assert records[2].send_lag_ms is None


async def test_stop_ends_the_run_with_its_first_reason(engine: GenerateStandIn) -> None:
    engine.behaviours = {1: first_then_hang}
    requests = [planned(0, 0.0), planned(1, 0.0), planned(2, 60.0)]
    target = UrlTarget(engine.url)
    client = ReplayClient(WorkerJob(target, Prompts(1024), ClientConfig(), "t", requests))
    running = asyncio.create_task(client.run())
    while client.counts.done < 1 or len(engine.bodies) < 2:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    client.stop("decode-0 died")
    client.stop("a second reason")
    records = await running
    assert [r.outcome for r in records] == [
        RequestOutcome.OK,
        RequestOutcome.CUT,
        RequestOutcome.CUT,
    ]
    assert [r.reason for r in records] == ["", "decode-0 died", "decode-0 died"]
    assert records[1].got_tokens == 1
    assert (client.counts.sent, client.counts.done, client.counts.failed) == (2, 2, 1)


async def test_timeout_closes_the_connection(engine: GenerateStandIn) -> None:
    """The server must see the disconnect, or it would generate tokens without a reader."""
    engine.behaviours = {0: hang}
    await replay(plan(1), UrlTarget(engine.url), timeout_s=0.2)
    for _ in range(100):
        if engine.gone:
            break
        await asyncio.sleep(0.02)
    assert engine.gone == {0}


def pair(prefill: GenerateStandIn, decode: GenerateStandIn) -> PairTarget:
    left = Endpoint("prefill-0", prefill.url, False, "127.0.0.1", 8998)
    return PairTarget([left], [Endpoint("decode-0", decode.url)])


@pytest.fixture
async def other(engine: GenerateStandIn) -> AsyncIterator[GenerateStandIn]:
    second = GenerateStandIn()
    app = web.Application(client_max_size=1 << 24)
    app.router.add_post("/generate", second.handle)
    server = TestServer(app)
    await server.start_server()
    second.url = str(server.make_url("")).rstrip("/")
    yield second
    await server.close()


async def test_both_endpoints_of_a_pair_get_the_same_body(
    engine: GenerateStandIn, other: GenerateStandIn
) -> None:
    records = await replay(plan(3), pair(engine, other))
    assert [r.outcome for r in records] == [RequestOutcome.OK] * 3
    assert [r.got_tokens for r in records] == [3] * 3  # decode's tokens, counted once
    by_rid = {body["rid"]: body for body in engine.bodies}
    assert by_rid == {body["rid"]: body for body in other.bodies}
    rooms = {body["bootstrap_room"] for body in engine.bodies}
    assert len(rooms) == 3
    assert all(0 <= room < 2**63 for room in rooms)
    assert {(b["bootstrap_host"], b["bootstrap_port"]) for b in engine.bodies} == {
        ("127.0.0.1", 8998)
    }


async def test_failed_prefill_endpoint_ends_the_pair(
    engine: GenerateStandIn, other: GenerateStandIn
) -> None:
    engine.behaviours = {0: refuse, 1: break_off}
    other.behaviours = {0: hang, 1: hang}
    records = await replay(plan(3), pair(engine, other), timeout_s=30.0)
    outcomes = [r.outcome for r in records]
    assert outcomes == [
        RequestOutcome.HTTP_ERROR,
        RequestOutcome.CONNECTION_ERROR,
        RequestOutcome.OK,
    ]
    assert "prefill-0" in records[0].reason
    for _ in range(100):
        if other.gone == {0, 1}:
            break
        await asyncio.sleep(0.02)
    assert other.gone == {0, 1}


async def test_hanging_prefill_endpoint_does_not_outlive_the_decode_stream(
    engine: GenerateStandIn, other: GenerateStandIn
) -> None:
    engine.behaviours = {0: hang}
    (record,) = await replay(plan(1), pair(engine, other), timeout_s=30.0)
    assert record.outcome is RequestOutcome.OK


async def test_bug_in_the_client_costs_one_request(engine: GenerateStandIn) -> None:
    class Broken(UrlTarget):
        def endpoints(self, index: int) -> tuple[Endpoint, ...]:
            return (
                (Endpoint("x", f"ftp://{index}"),)
                if index == 1
                else tuple(super().endpoints(index))
            )

    records = await replay(plan(3), Broken(engine.url))
    assert [r.outcome for r in records][::2] == [RequestOutcome.OK, RequestOutcome.OK]
    assert records[1].outcome is not RequestOutcome.OK


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_limits_are_refused(value: float) -> None:
    with pytest.raises(InputError, match="--timeout-s"):
        ClientConfig(timeout_s=value)
    with pytest.raises(InputError, match="--budget-s"):
        ClientConfig(budget_s=value)


async def test_server_that_does_not_stop_costs_only_its_own_request() -> None:
    """The server sends five chunks for three requested tokens, and no usage."""

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        count = 5 if (await request.json())["max_tokens"] == 3 else 4
        for _ in range(count):
            await response.write(b'data: {"choices": [{"text": "x"}]}\n\n')
        return response

    app = web.Application()
    app.router.add_post("/v1/completions", endless)
    async with TestServer(app) as server:
        target = UrlTarget(str(server.make_url("")).rstrip("/"))
        requests = [planned(0, output_tokens=3), planned(1, output_tokens=4)]
        records = await replay(requests, target, api=CompletionsApi("m"))
    assert [r.outcome for r in records] == [RequestOutcome.STREAM_ERROR, RequestOutcome.OK]
    assert records[0].reason == "5 tokens, 3 were requested"
    assert records[0].got_tokens == 3
