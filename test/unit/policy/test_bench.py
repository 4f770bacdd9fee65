"""scripts/bench_policy.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "bench_policy.py"


@pytest.mark.slow
def test_memory_does_not_grow_with_requests():
    command = [sys.executable, str(SCRIPT), "--soak", "100000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=250)
    memory = json.loads(done.stdout)["soak_rss_mib"]
    # 100 bytes kept per request would be 8 MiB.
    assert len(memory) == 10
    assert memory[-1] - memory[0] < 4.0
