"""Every way to start a server knows --kairos, and refuses unsupported modes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from kairos.cluster import Cluster, ClusterSpec
from kairos_emulation.cluster import platform_model, with_platform
from kairos_emulation.launch import settings
from support.pair import kairos_state

SERVE = (str(Path(sys.executable).with_name("sglang")), "serve")
LAUNCH = (sys.executable, "-m", "sglang.launch_server")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def test_sglang_serve_with_a_config_file(models: Path, tmp_path: Path) -> None:
    config = tmp_path / "kairos.yaml"
    config.write_text(
        "kairos: true\nkairos-ttft-slo-ms: 900\nkairos-slo-class: ['a=1000,20', 'b=2000,40']\n"
    )
    spec = ClusterSpec(
        model=platform_model("emulated", models),
        prefill=0,
        decode=0,
        args=("--config", str(config)),
        server_command=SERVE,
    )
    with Cluster(with_platform(spec, "emulated", "tiny-fast"), tmp_path / "logs") as cluster:
        body = {"input_ids": [30] * 20, "sampling_params": {"max_new_tokens": 2}}
        headers = {"x-kairos-slo-class": "b"}
        answer = httpx.post(f"{cluster.url}/generate", json=body, headers=headers, timeout=60)
        assert answer.headers["x-kairos-slo-applied"] == "ttft-ms=2000, tpot-ms=40, class=b"
        state = kairos_state(cluster.servers[0])
        assert state is not None
        assert state["role"] == "null"
        message = {
            "model": "m",
            "max_tokens": 2,
            "messages": [{"role": "user", "content": "one two"}],
        }
        answer = httpx.post(f"{cluster.url}/v1/messages", json=message, headers=headers, timeout=60)
        assert answer.headers["x-kairos-slo-applied"] == "ttft-ms=2000, tpot-ms=40, class=b"
        state = kairos_state(cluster.servers[0])
        assert state is not None
        assert state["recent"][-1]["class"] == "b"
        bad = httpx.post(
            f"{cluster.url}/v1/messages", json=message, headers={"x-slo-ttft-ms": "0"}, timeout=60
        )
        assert bad.status_code == 400
        assert "header x-slo-ttft-ms: '0'" in bad.json()["error"]["message"]


def engine_arguments(model: Path) -> dict[str, Any]:
    return {
        "model_path": str(model),
        "device": "cpu",
        "attention_backend": "torch_native",
        "max_total_tokens": 10_000,
        "max_running_requests": 8,
        "context_length": 4096,
        "log_level": "error",
    }


ENGINE = """
import json, sys
from sglang.srt.entrypoints.engine import Engine

if __name__ == "__main__":
    engine = Engine(**json.loads(sys.argv[1]))
    slo = {"custom_params": {"kairos": {"ttft_ms": 700}}}
    bad = {"custom_params": {"kairos": {"ttft_ms": "soon"}}}
    prompt = [30] * 20
    for params in (slo, {}):
        engine.generate(input_ids=prompt, sampling_params={"max_new_tokens": 2, **params})
    try:
        engine.generate(input_ids=prompt, sampling_params=bad)
    except ValueError as error:
        print(error, file=sys.stderr)
    print(json.dumps(engine.get_server_info()["internal_states"][0]["kairos"]))
    engine.shutdown()
"""


@pytest.mark.long
def test_engine_by_environment_variable(models: Path, tmp_path: Path) -> None:
    script = tmp_path / "engine.py"
    script.write_text(ENGINE)
    model = platform_model("emulated", models)
    arguments = engine_arguments(model)
    env = {
        **os.environ,
        **settings("emulated", "single", "tiny-fast", model).env,
        "SGLANG_KAIROS": "--kairos-tpot-slo-ms 33",
    }
    done = subprocess.run(
        [sys.executable, script, json.dumps(arguments)],
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    state = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    slos = [(item.get("ttft_ms"), item["tpot_ms"]) for item in state["recent"]]
    assert slos == [(700, 33), (None, 33)]
    assert "sampling_params.custom_params.kairos.ttft_ms: 'soon'" in done.stderr
    assert state["invalid_slos"] == 0


SERVER_ARGS = """
import json, sys
from sglang.srt.entrypoints.http_server import launch_server
from sglang.srt.server_args import ServerArgs

if __name__ == "__main__":
    launch_server(ServerArgs(**json.loads(sys.argv[1])))
"""


@pytest.mark.long
def test_launch_server_by_environment_variable(models: Path, tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(SERVER_ARGS)
    model = platform_model("emulated", models)
    launch = settings("emulated", "single", "tiny-fast", model)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    arguments = {**engine_arguments(model), "host": "127.0.0.1", "port": port}
    server = subprocess.Popen(
        [sys.executable, script, json.dumps(arguments)],
        env={**os.environ, **launch.env, "SGLANG_KAIROS": "1"},
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_healthy(url, server)
        body = {"input_ids": [30] * 20, "sampling_params": {"max_new_tokens": 2}}
        headers = {"x-kairos-slo-ttft-ms": "321"}
        answer = httpx.post(f"{url}/generate", json=body, headers=headers, timeout=60)
        assert answer.headers["x-kairos-slo-applied"] == "ttft-ms=321, tpot-ms=50, class=default"
        state = httpx.get(f"{url}/server_info", timeout=60).json()["internal_states"][0]["kairos"]
        assert state["recent"][-1]["ttft_ms"] == 321
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_until_healthy(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert server.poll() is None
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", timeout=10).status_code == 200:
                return
        time.sleep(0.5)
    raise TimeoutError(url)


@pytest.mark.parametrize("command", [LAUNCH, SERVE], ids=["launch_server", "serve"])
@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--kairos-tpot-slo-ms", "30"], "--kairos-tpot-slo-ms has no effect without --kairos"),
        (["--kairos", "--kairos-ttft-slo-ms", "1e99"], "--kairos-ttft-slo-ms: '1e99'"),
        (["--kairos", "--pp-size", "2"], "--pp-size 2 is not supported with --kairos"),
    ],
    ids=["without the flag", "absurdly large", "unsupported"],
)
def test_wrong_flags_are_one_line_and_nothing_is_left_running(
    models: Path, command: tuple[str, ...], flags: list[str], named: str
) -> None:
    model = platform_model("emulated", models)
    launch = settings("emulated", "single", "tiny-fast", model)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    done = subprocess.run(
        [*command, *launch.args, "--port", port, *flags],
        env={**os.environ, **launch.env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert [line for line in done.stderr.splitlines() if "kairos: error" in line] == [
        line for line in done.stderr.splitlines() if named in line
    ]
    assert "Traceback" not in done.stderr
    with socket.create_server(("127.0.0.1", int(port))):
        pass  # the address is free
