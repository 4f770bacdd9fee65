"""The examples that need no server run as they stand."""

import os
import subprocess
import sys
from pathlib import Path

import kairos_patches
from kairos.workload.synthetic import generate, write_trace

EXAMPLES = Path(kairos_patches.__file__).parent.parent / "examples"


def test_own_policy_is_compared_with_the_others(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl.gz"
    write_trace(generate("mooncake-conversation", 200, 0), trace)
    done = subprocess.run(
        [sys.executable, EXAMPLES / "own_policy.py", "--trace", trace, "--workers", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "160"},
    )
    assert done.returncode == 0, done.stderr
    assert all(policy in done.stdout for policy in ("fcfs", "density", "urgency"))


def test_pair_without_a_model_says_how_it_is_used() -> None:
    done = subprocess.run(
        ["bash", EXAMPLES / "pair_behind_router.sh"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "examples/pair_behind_router.sh MODEL" in done.stderr


def test_every_example_is_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    assert all(f"`{name}`" in listed for name in names)
