"""The bench of routers runs and finds no failed request."""

import subprocess
import sys
from pathlib import Path

import orjson

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_router.py"


def test_the_bench_measures_a_router(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    # fmt: off
    options = ["--routers", "kairos", "--streams", "2", "--seconds", "0.3", "--gap-ms", "5",
               "--idle", "20", "--json", str(out)]
    # fmt: on
    command = [sys.executable, str(SCRIPT), *options]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    figures = orjson.loads(out.read_bytes())["kairos"]
    for load in ("whole_2", "stream_2", "paced_2"):
        assert figures[load]["requests"] > 0
        assert figures[load]["failed"] == figures[load]["timed_out"] == 0
    assert figures["idle"]["streams"] == 20
