"""The examples with servers, as a user would run them, on the emulated accelerator."""

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import kairos_patches
from kairos.cluster.ports import PortReservation
from kairos_emulation.cluster import platform_model
from kairos_emulation.launch import settings
from support.pair import wait_for

EXAMPLES = Path(kairos_patches.__file__).parent.parent / "examples"

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(300)]


def ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def test_pair_behind_the_router_serves_the_openai_client(tmp_path: Path) -> None:
    model = platform_model("emulated", tmp_path)
    prefill = settings("emulated", "prefill", "tiny-fast", model)
    common = [flag for flag in prefill.args if flag != "prefill"]
    common.remove("--disaggregation-mode")
    # The default backup of a retracted request copies through CUDA streams.
    common += ["--disaggregation-decode-retraction-backup", "cpu_tensor"]
    held = PortReservation()
    ports = [held.take() for _ in range(4)]
    held.close()
    names = ("PREFILL_PORT", "DECODE_PORT", "BOOTSTRAP_PORT", "ROUTER_PORT")
    env = {
        **os.environ,
        **prefill.env,
        **dict(zip(names, map(str, ports), strict=True)),
        "PYTHON": sys.executable,
        "SGLANG_HOST_IP": "127.0.0.1",
    }
    log = (tmp_path / "pair.log").open("w+")
    pair = subprocess.Popen(
        ["bash", EXAMPLES / "pair_behind_router.sh", model, *common[2:]],
        env=env,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{ports[3]}"
    try:
        wait_for(lambda: ready(f"{url}/ready") or pair.poll() is not None, "the pair", 240.0)
        assert pair.poll() is None, Path(log.name).read_text()
        done = subprocess.run(
            [sys.executable, EXAMPLES / "openai_client.py", f"{url}/v1", "emulated"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "applied: " in done.stdout
        assert "time to first token: " in done.stdout
    finally:
        os.killpg(pair.pid, signal.SIGINT)
        pair.wait(60)
        log.close()
