"""The router as a process: what its users and operators see."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kairos.router.edge.keys import new_key
from kairos.router.edge.openapi import document
from support.router_process import Engine, routed

PROMPT = {"text": "hello", "sampling_params": {"max_new_tokens": 2}}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with routed(tmp_path_factory.mktemp("router")) as parts:
        yield parts


def wait_for(condition, limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def samples(text: bytes) -> dict[str, float]:
    """Sums over labels, by sample name."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


def test_the_openai_client_works_streaming_and_not(served) -> None:
    router, _, _ = served
    client = openai.OpenAI(base_url=f"{router.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny"]
    whole = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        extra_body={"kairos": {"ttft_ms": 500}},
    )
    assert whole.choices[0].message.content == "a b"
    parts = client.completions.create(model="tiny", prompt="hi", stream=True)
    assert "".join(part.choices[0].text for part in parts) == " a a"
    assert client.responses.create(model="tiny", input="hi").output_text == "a b"
    with pytest.raises(openai.BadRequestError, match="ttft_ms"):
        client.completions.create(model="tiny", prompt="hi", extra_body={"kairos": {"ttft_ms": 0}})
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="tiny", input="hi")


def test_clients_headers_and_bodies_choose_nothing_for_the_servers(served) -> None:
    router, (prefill,), (decode,) = served
    hostile = {
        "x-override-bootstrap-host": "evil", "x-override-rid": "a", "traceparent": TRACE,
        "authorization": "Bearer client", "cookie": "a=b", "x-forwarded-for": "1.2.3.4",
    }  # fmt: skip
    body = {**PROMPT, "rid": "a", "bootstrap_host": "evil", "bootstrap_room": 1}

    def mine(engine: Engine) -> list:
        return [leg for leg in engine.of("/generate") if leg[0].get("traceparent") == TRACE]

    assert router.ask("POST", "/generate", body, headers=hostile)[0] == 200
    # These decode servers do not wait for the prefill server, so neither does the answer.
    wait_for(lambda: mine(prefill) and mine(decode))
    legs = [mine(engine) for engine in (prefill, decode)]
    assert [len(leg) for leg in legs] == [1, 1]
    for [(headers, sent)] in legs:
        assert not {"authorization", "cookie", "x-forwarded-for"} & set(headers)
        assert not [name for name in headers if name.startswith("x-override")]
        assert sent["bootstrap_host"] == "127.0.0.1"
        assert sent["bootstrap_port"] == 8998
        assert len(sent["rid"]) == 32
    assert legs[0][0][1] == legs[1][0][1]


def test_every_request_is_one_line_and_one_count(served) -> None:
    router, _, _ = served
    name = "kairos_router_requests_total"
    counts = samples(router.get("/metrics")[1])
    lines = int(counts.get(name, 0))
    wait_for(lambda: len(router.lines()) == lines)  # the log is written a little later
    asked = [
        router.ask("POST", "/generate", {**PROMPT, "kairos": {"ttft_ms": 2000}})[0],
        router.ask("POST", "/generate", {"text": ""} | {"stream": 3})[0],
        router.ask("POST", "/v1/completions", {"model": "secret-prompt"})[0],
        router.ask("POST", "/nowhere", {})[0],
    ]
    assert asked == [200, 400, 400, 404]
    wait_for(lambda: len(router.lines()) >= lines + 3)
    fresh = router.lines()[lines:]
    assert [line["outcome"] for line in fresh[:3]] == ["completed", "invalid", "invalid"]
    assert fresh[0]["ttft_slo_ms"] == 2000
    assert "tpot_slo_ms" not in fresh[0]
    assert fresh[0]["attempts"] == 1
    assert "hello" not in json.dumps(fresh)
    after = samples(router.get("/metrics")[1])
    assert after[name] - lines == len(fresh)

    def idle() -> bool:
        # The other leg of the last one, or a probe, may just be ending.
        now = samples(router.get("/metrics")[1])
        gauges = ("queued_requests", "running_requests", "live_rooms")
        return all(now[f"kairos_router_{gauge}"] == 0 for gauge in gauges)

    wait_for(idle)


def test_the_description_is_served(served) -> None:
    router, _, _ = served
    status, body = router.get("/openapi.json")
    assert (status, json.loads(body)) == (200, document())


def test_keys_admin_and_reload(tmp_path: Path) -> None:
    (key, hashed), (admin, admin_hash), (fresh, fresh_hash) = new_key(), new_key(), new_key()
    keys, admins, engine = tmp_path / "keys.yaml", tmp_path / "admin", tmp_path / "engine"
    keys.write_text(
        "classes: {fast: {ttft_ms: 500, tpot_ms: 30}}\n"
        f"tenants: {{shop: {{keys: ['{hashed}'], default_class: fast}}}}\n"
    )
    admins.write_text(admin_hash)
    engine.write_text("engine-secret\n")
    argv = ["--keys-file", str(keys), "--admin-key-file", str(admins),
            "--engine-key-file", str(engine), "--allow-worker", "127.0.0.1:*"]  # fmt: skip
    with routed(tmp_path, *argv) as (router, (prefill,), _):
        assert router.ask("POST", "/generate", PROMPT)[0] == 401
        assert router.get("/metrics")[0] == 401
        assert router.get("/metrics", key)[0] == 401
        assert router.get("/metrics", admin)[0] == 200
        assert router.get("/workers", key)[0] == 401
        status, body = router.get("/workers", admin)
        assert status == 200
        assert {worker["role"] for worker in json.loads(body)["workers"]} == {"prefill", "decode"}
        assert router.get("/health")[0] == 200
        assert router.ask("POST", "/flush_cache", None, admin)[0] == 200
        assert router.ask("POST", "/flush_cache", None, key)[0] == 401

        # The class of its key applies, not the tighter one that it asks for.
        tight = {"x-kairos-slo-ttft-ms": "1"}
        assert router.ask("POST", "/generate", PROMPT, key, tight)[0] == 200
        wait_for(lambda: any(line["outcome"] == "completed" for line in router.lines()))
        line = next(line for line in router.lines() if line["outcome"] == "completed")
        assert (line["tenant"], line["slo_class"], line["ttft_slo_ms"]) == ("shop", "fast", 500)
        sent = [headers for headers, _ in prefill.of("/generate")]
        assert {headers["authorization"] for headers in sent} == {"Bearer engine-secret"}

        ask = {"role": "decode", "url": "http://169.254.169.254:80"}
        assert router.ask("POST", "/workers", ask, admin)[0] == 403
        assert router.ask("POST", "/workers", ask, key)[0] == 401

        keys.write_text("tenants: {shop: {keys: [broken]}}")
        router.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "stay as they are" in router.log.read_text())
        assert router.ask("POST", "/generate", PROMPT, key)[0] == 200
        keys.write_text(f"tenants: {{other: {{keys: ['{fresh_hash}']}}}}")
        router.process.send_signal(signal.SIGHUP)
        wait_for(lambda: router.ask("POST", "/generate", PROMPT, fresh)[0] == 200)
        assert router.ask("POST", "/generate", PROMPT, key)[0] == 401
        text = router.log.read_text()
        for secret in (key, admin, fresh, "engine-secret"):
            assert secret not in text
        assert router.stop() == 0


def test_limits_of_a_tenant_hold(tmp_path: Path) -> None:
    key, hashed = new_key()
    keys = tmp_path / "keys.yaml"
    keys.write_text(
        f"tenants: {{a: {{keys: ['{hashed}'], requests_per_s: 0.001, burst: 2, weight: 2}}}}"
    )
    with routed(tmp_path, "--keys-file", str(keys), "--overload-status", "503") as (router, _, _):
        asked = [router.ask("POST", "/generate", PROMPT, key) for _ in range(3)]
        assert [status for status, _ in asked] == [200, 200, 429]
        assert json.loads(asked[2][1])["error"]["code"] == "tenant_rate"
        wait_for(lambda: len(router.lines()) == 3)
        assert router.lines()[2]["outcome"] == "rejected_tenant"


def test_a_taken_port_and_a_bad_profile_stop_the_start(served, tmp_path: Path) -> None:
    router, _, _ = served
    pair = ["--prefill", "http://127.0.0.1:1", "--decode", "http://127.0.0.1:2"]
    for argv, says in (
        (["--port", str(router.port)], "another process listens"),
        (["--port", "0", "--profile", "no-such"], "no-such"),
        (["--port", "0", "--tokenizer-path", str(tmp_path / "none")], "none"),
        (["--port", "0", "--access-log", str(tmp_path / "no" / "log")], "--access-log"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "kairos.router", *pair, *argv],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2, done.stderr
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("kairos-router: ")
        assert says in last


def test_a_router_that_drains_serves_on_until_load_balancers_know(tmp_path: Path) -> None:
    with routed(tmp_path, "--drain-delay-s", "2") as (router, _, _):
        router.process.send_signal(signal.SIGTERM)
        wait_for(lambda: router.get("/ready")[0] == 503)
        assert router.ask("POST", "/generate", PROMPT)[0] == 200
        assert router.process.wait(30) == 0
