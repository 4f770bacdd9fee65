"""HTTP at the edge: CORS, HEAD, paths, header lines and the log of administration."""

import logging
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from kairos.router.config.settings import Listen, Security
from kairos.router.edge.app import App
from kairos.router.edge.keys import new_key
from kairos.router.workers.endpoint import parse_pattern
from kairos.slo import SLO_HEADERS
from support.router_engine import fakes
from support.router_running import config_for, running

BODY = {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 2}}
PAGE, OTHER = "https://app.example", "https://evil.example"
CORS = "Access-Control-Allow-Origin"


def preflight(origin: str) -> dict[str, Any]:
    return {
        "method": "OPTIONS",
        "headers": {"Origin": origin, "Access-Control-Request-Method": "POST"},
    }


@pytest.mark.parametrize(
    ("allowed", "origin", "passes"),
    [
        ((PAGE,), PAGE, True),
        ((OTHER, PAGE), PAGE, True),
        (("*",), PAGE, True),
        ((PAGE,), OTHER, False),
        ((PAGE,), PAGE + ".evil.example", False),
        ((PAGE,), "null", False),
        ((), PAGE, False),
    ],
)
async def test_a_page_may_use_the_api_only_from_an_allowed_origin(
    allowed: tuple[str, ...], origin: str, passes: bool
) -> None:
    async with (
        fakes() as cluster,
        running(config_for(cluster, listen=Listen(cors_origin=allowed))) as up,
    ):
        async with up.session.request(url=f"{up.url}/generate", **preflight(origin)) as answer:
            assert answer.status == (204 if passes else 405)
            assert answer.headers.get(CORS) == (origin if passes else None)
            if passes:
                assert "POST" in answer.headers["Access-Control-Allow-Methods"]
                names = answer.headers["Access-Control-Allow-Headers"].split(", ")
                assert {"authorization", "content-type", *SLO_HEADERS} <= set(names)
        for method, path, body in (
            ("POST", "/generate", BODY), ("POST", "/generate", {**BODY, "stream": True}),
            ("POST", "/generate", {}), ("GET", "/health", None), ("GET", "/nothing", None),
        ):  # fmt: skip
            async with up.session.request(
                method, up.url + path, json=body, headers={"Origin": origin}
            ) as answer:
                await answer.read()
                assert answer.headers.get(CORS) == (origin if passes else None)
                assert answer.headers.get("Vary") == ("Origin" if passes else None)
                # Keys travel in a header that the page sets, never in a browser's cookies.
                assert "Access-Control-Allow-Credentials" not in answer.headers


async def test_without_an_origin_answers_carry_no_cors_headers() -> None:
    config = Listen(cors_origin=("*",))
    async with (
        fakes() as cluster,
        running(config_for(cluster, listen=config)) as up,
        up.post(BODY) as answer,
    ):
        assert answer.status == 200
        assert not [name for name in answer.headers if name.startswith("Access-Control")]


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/v1/models", "/openapi.json"])
async def test_head_is_answered_like_get_without_a_body(path: str) -> None:
    async with fakes() as cluster, running(config_for(cluster)) as up:
        async with up.session.get(up.url + path) as got, up.session.head(up.url + path) as head:
            assert (head.status, await head.read()) == (200, b"")
            assert head.content_type == got.content_type
            if path != "/metrics":  # its length changes with the numbers
                assert head.headers["Content-Length"] == str(len(await got.read()))
        async with up.session.head(f"{up.url}/generate") as head:
            assert (head.status, head.headers["Allow"]) == (405, "POST")


async def test_a_trailing_slash_is_ignored() -> None:
    async with fakes() as cluster, running(config_for(cluster)) as up:
        for path in ("/health", "/v1/models", "/v1/models/fake"):
            async with (
                up.session.get(up.url + path) as bare,
                up.session.get(f"{up.url}{path}/") as answer,
            ):
                assert (answer.status, await answer.read()) == (200, await bare.read())
        async with up.post(BODY, path="/generate/") as answer:
            assert answer.status == 200


async def test_one_model_is_shown_and_an_unknown_one_names_those_there_are() -> None:
    async with fakes() as cluster, running(config_for(cluster)) as up:
        async with up.session.get(f"{up.url}/v1/models") as answer:
            [model] = (await answer.json())["data"]
        async with up.session.get(f"{up.url}/v1/models/{model['id']}") as answer:
            assert (answer.status, await answer.json()) == (200, model)
        async with up.session.get(f"{up.url}/v1/models/org/none") as answer:
            assert answer.status == 404
            message = (await answer.json())["error"]["message"]
        assert "'org/none'" in message
        assert model["id"] in message
        async with up.session.get(f"{up.url}/v2/models") as answer:
            assert "/v1/models" in (await answer.json())["error"]["message"]


async def test_an_id_of_the_client_comes_back_and_another_is_made_where_it_sends_none() -> None:
    async with fakes() as cluster, running(config_for(cluster)) as up:
        for body in (BODY, {**BODY, "stream": True}, {}):
            async with up.post(body, headers={"X-Request-Id": "mine-1"}) as answer:
                await answer.read()
                assert answer.headers["x-request-id"] == "mine-1"
                assert answer.headers["x-kairos-request-id"] != "mine-1"
        assert cluster.decode[0].headers[-1]["x-request-id"] == "mine-1"
        async with up.post(BODY) as answer:
            assert answer.headers["x-request-id"] == answer.headers["x-kairos-request-id"]


async def test_no_answer_tells_versions_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        fakes() as cluster,
        running(config_for(cluster, listen=Listen(cors_origin=(PAGE,)))) as up,
    ):
        for request in (
            {"method": "POST", "url": "/generate", "json": BODY},
            {"method": "POST", "url": "/generate", "json": {**BODY, "stream": True}},
            {"method": "POST", "url": "/generate", "json": {}},
            {"url": "/generate", **preflight(PAGE)},
            *({"method": "GET", "url": path} for path in App(up.router).routes),
        ):
            async with up.session.request(**{**request, "url": up.url + request["url"]}) as answer:
                await answer.read()
                assert answer.headers["Server"] == "kairos-router", request

        def broken() -> None:
            raise RuntimeError

        monkeypatch.setattr(up.router, "gauges", broken)
        async with up.session.get(f"{up.url}/metrics") as answer:
            assert (answer.status, answer.headers["Server"]) == (500, "kairos-router")


async def test_a_header_name_with_an_underscore_is_refused_only_where_its_twin_is_read() -> None:
    async with fakes() as cluster, running(config_for(cluster)) as up:
        async with up.post(BODY, headers={"my_header": "1", "X_Forwarded_For": "a"}) as answer:
            assert answer.status == 200
        sent = cluster.decode[0].headers[-1]
        assert not [name for name in sent if "_" in name]
        for name in ("X_Kairos_SLO_TTFT_ms", "x_request_id", "Content_Type"):
            async with up.post(BODY, headers={name: "500"}) as answer:
                assert answer.status == 400
                message = (await answer.json())["error"]["message"]
            assert name.lower() in message
            assert name.lower().replace("_", "-") in message


async def test_every_change_by_an_administrator_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    admin, hashed = new_key()
    (tmp_path / "admin").write_text(hashed)
    headers = {"Authorization": f"Bearer {admin}"}
    async with (
        fakes() as cluster,
        running(
            config_for(
                cluster,
                security=Security(admin_key_file=tmp_path / "admin"),
                workers=structs.replace(
                    config_for(cluster).workers, allow_worker=(parse_pattern("127.0.0.1:*", ""),)
                ),
            )
        ) as up,
    ):
        name = cluster.decode[0].url.removeprefix("http://")
        calls = [
            ("POST", f"/workers/{name}/drain", 200), ("POST", f"/workers/{name}/undrain", 200),
            ("POST", "/flush_cache", 200), ("DELETE", f"/workers/{name}", 200),
            ("POST", "/workers", 201),
        ]  # fmt: skip
        for method, path, status in calls:
            body = {"role": "decode", "url": "http://127.0.0.1:9"} if path == "/workers" else None
            caplog.clear()
            with caplog.at_level(logging.INFO, "kairos.router.edge.app"):
                async with up.session.request(method, up.url + path, json=body) as answer:
                    assert answer.status == 401
                assert not caplog.messages
                async with up.session.request(
                    method, up.url + path, json=body, headers=headers
                ) as answer:
                    assert answer.status == status
            [line] = [line for line in caplog.messages if line.startswith("admin: ")]
            assert path in line
            assert "127.0.0.1" in line
            assert admin not in line
