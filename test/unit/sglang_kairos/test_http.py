"""The HTTP middleware reads SLOs before an endpoint does; a request takes its own to the engine."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from sglang.srt.kairos import http
from sglang.srt.kairos.config import ENV, active_config

from kairos.errors import InputError

BAD_HEADER = {"x-kairos-slo-ttft-ms": "0"}


@pytest.fixture(autouse=True)
def _kairos(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(ENV, "--kairos-ttft-slo-ms 900 --kairos-slo-class fast=500,25")
    active_config.cache_clear()
    yield
    monkeypatch.undo()
    active_config.cache_clear()


def generated(sampling_params: Any) -> Any:
    """The SLOs that a request takes to the scheduler."""
    obj = SimpleNamespace(sampling_params=sampling_params)
    http.attach_slo(obj)
    if isinstance(obj.sampling_params, list):
        return [params["custom_params"]["kairos"] for params in obj.sampling_params]
    return obj.sampling_params["custom_params"]["kairos"]


def application() -> FastAPI:
    """Endpoints that generate as upstream's do."""
    app = FastAPI()

    @app.post("/generate")
    async def generate(request: Request) -> Any:
        body = await request.json()
        return generated(body.get("sampling_params"))

    @app.post("/stream")
    async def stream(request: Request) -> StreamingResponse:
        async def events() -> AsyncIterator[bytes]:
            yield f"data: {generated({})['ttft_ms']}\n\n".encode()

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.post("/v1/tools")
    async def tools(request: Request) -> Any:
        first = generated({})
        await asyncio.sleep(0.02)
        return [first, generated({})]

    @app.post("/v1/messages")
    async def messages(request: Request) -> Any:
        return generated({})

    @app.post("/v1/background")
    async def background(request: Request) -> Any:
        async def later() -> Any:
            return generated({})

        return await asyncio.create_task(later())

    @app.post("/other")
    async def other(request: Request) -> int:
        return len(await request.body())

    app.add_middleware(http.SloMiddleware)
    return app


def post(path: str, **options: Any) -> httpx.Response:
    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(application())
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.post(path, **options)

    return asyncio.run(call())


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/background", "/generate"])
def test_headers_count_on_every_endpoint(path: str) -> None:
    answer = post(path, json={}, headers={"x-kairos-slo-class": "fast"})
    assert answer.json()["ttft_ms"] == 500
    assert answer.headers["x-kairos-slo-applied"] == "ttft-ms=500, tpot-ms=25, class=fast"


def test_a_stream_carries_the_slo_and_echoes_it() -> None:
    answer = post("/stream", json={"kairos": {"ttft_ms": 700}})
    assert answer.text == "data: 700.0\n\n"
    assert answer.headers["x-kairos-slo-applied"].startswith("ttft-ms=700, ")


def test_a_body_in_parts_arrives_whole() -> None:
    async def parts() -> AsyncIterator[bytes]:
        for part in (b'{"kai', b'ros": {"ttft_ms": 70', b'1}, "sampling_params": {}}'):
            yield part

    answer = post("/generate", content=parts(), headers={"content-type": "application/json"})
    assert answer.json()["ttft_ms"] == 701


def test_a_batch_has_an_slo_per_request() -> None:
    params = [{"custom_params": {"kairos": {"ttft_ms": 600 + index}}} for index in range(2)]
    answer = post("/generate", json={"sampling_params": params})
    assert [slo["ttft_ms"] for slo in answer.json()] == [600, 601]
    assert answer.headers["x-kairos-slo-applied"] == "mixed"


def test_a_generation_after_a_tool_call_has_not_waited_yet() -> None:
    first, second = post("/v1/tools", json={"kairos": {"elapsed_ms": 500}}).json()
    assert second["arrival_s"] - first["arrival_s"] > 0.5


def test_an_endpoint_that_does_not_generate_is_untouched() -> None:
    answer = post("/other", content=b"x" * 1000, headers={"content-type": "text/plain"})
    assert answer.json() == 1000
    assert "x-kairos-slo-applied" not in answer.headers


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/generate", ("error", "message")),
        ("/v1/completions", ("message",)),
        ("/v1/messages", ("error", "message")),
        ("/v1/responses", ("error", "message")),
    ],
)
def test_a_bad_header_is_answered_in_the_form_of_the_endpoint(
    path: str, message: tuple[str, ...]
) -> None:
    answer = post(path, json={}, headers=BAD_HEADER)
    assert answer.status_code == 400
    found = answer.json()
    for key in message:
        found = found[key]
    assert "header x-kairos-slo-ttft-ms: '0'" in found


def test_a_bad_body_is_refused_before_a_stream_begins() -> None:
    answer = post("/stream", json={"stream": True, "custom_params": {"kairos": {"ttft_ms": -1}}})
    assert answer.status_code == 400
    assert "custom_params.kairos.ttft_ms: -1" in answer.text


def test_without_kairos_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV)
    active_config.cache_clear()
    answer = post("/other", json={"kairos": 17}, headers=BAD_HEADER)
    assert answer.status_code == 200


def test_an_engine_call_gets_the_servers_default() -> None:
    assert generated(None)["ttft_ms"] == 900


def test_an_engine_call_with_a_malformed_slo_is_refused() -> None:
    with pytest.raises(InputError, match=r"sampling_params\.custom_params\.kairos\.ttft_ms"):
        generated({"custom_params": {"kairos": {"ttft_ms": "soon"}}})


def test_the_callers_parameters_stay_as_they_are() -> None:
    params = {"custom_params": {"mine": 1}}
    generated(params)
    assert params == {"custom_params": {"mine": 1}}
