"""`scripts/replay.py` on real servers: requests, records, and a server that dies."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from kairos.replay.client.record import RequestOutcome
from kairos.replay.run.forwards import Forward, read_forwards
from kairos.replay.run.record_file import read_records
from kairos.workload.trace import BLOCK_TOKENS
from support.pair import wait_for

SCRIPT = Path(__file__).parents[2] / "scripts" / "replay.py"
LIMIT_S = 150
REQUESTS = 20
FAMILIES = 4
WHOLE = 16  # this one is nothing but its family's prefix


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Write a trace whose requests belong to families in turn, each with two shared blocks."""
    path = tmp_path / "trace.jsonl"
    lines = []
    for i in range(REQUESTS):
        family = i % FAMILIES
        own = 0 if i == WHOLE else 80 + 31 * i
        fields = {
            "arrival_s": float(i),
            "input_tokens": 2 * BLOCK_TOKENS + own,
            "output_tokens": 3 + i % 5,
            "hash_ids": [2 * family, 2 * family + 1],
        }
        lines.append(json.dumps(fields) + "\n")
    path.write_text("".join(lines))
    return path


def started(trace: Path, out: Path, arm: str, load: float) -> subprocess.Popen[str]:
    """Start a replay; these tests do not look at attainment."""
    return subprocess.Popen(
        [
            *(sys.executable, str(SCRIPT), "--trace", str(trace), "--load", str(load)),
            *("--arms", arm, "--profile", "tiny-fast", "--goodput", "none", "--allow-disturbed"),
            *("--out", str(out)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def computed(forwards: list[Forward]) -> Counter[str]:
    """Return the prompt tokens that the prefill device computed, per request."""
    found: Counter[str] = Counter()
    for forward in forwards:
        found.update(dict(zip(forward.rids, forward.new, strict=True)))
    return found


def test_prompts_and_prefix_hits_match_the_trace(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    replay = started(trace, out, "kairos", 0.15)
    shown, errors = replay.communicate(timeout=LIMIT_S)
    assert replay.returncode == 0, errors
    assert "report.html" in shown

    header, records = read_records(out / "requests-kairos.jsonl")
    assert header.counts
    assert (header.arm, header.requests, header.instances) == ("kairos", REQUESTS, "1P1D")
    assert header.trace_sha256 == hashlib.sha256(trace.read_bytes()).hexdigest()
    assert (header.profile.name, header.emulated) == ("tiny-fast", True)
    assert "--kairos" in header.servers["prefill"]
    assert "--kairos" in header.servers["decode"]
    assert header.versions["sglang"]
    assert header.interference.send_lag_p99_ms is not None
    assert header.device is not None

    assert [r.outcome for r in records] == [RequestOutcome.OK] * REQUESTS
    assert [r.got_tokens for r in records] == [r.output_tokens for r in records]
    assert [r.prompt_tokens for r in records] == [r.input_tokens for r in records]
    asked = [0] * FAMILIES + [2 * BLOCK_TOKENS] * (REQUESTS - FAMILIES)
    asked[WHOLE] -= 1  # the last token of a prompt is always computed
    assert [r.expected_cached_tokens for r in records] == asked
    assert [r.cached_tokens for r in records] == asked
    work = computed(read_forwards(out / "forwards-kairos.jsonl")[0])
    assert [work[r.rid] for r in records] == [r.input_tokens - r.cached_tokens for r in records]
    assert all(r.tpot_engine_ms is not None for r in records)

    report = json.loads((out / "report.json").read_text())
    arm = report["arms"]["kairos"]
    assert (arm["requests"], arm["failures"]) == (REQUESTS, 0)
    assert header.note == ""
    # A machine that does other work disturbs the run; the report must then say so.
    assert arm["note"] == "; ".join(header.interference.problems)
    assert arm["effective_load"] == pytest.approx(0.15, rel=1e-3)
    assert "Prefill batches over time" in (out / "report.html").read_text()


@pytest.mark.long
def test_server_killed_during_a_run_is_in_the_report(trace: Path, tmp_path: Path) -> None:
    """The server ends seconds after its scheduler; the requests left by then are cut."""
    out = tmp_path / "out"
    replay = started(trace, out, "fcfs", 0.05)

    def serving() -> list[int]:
        """The decode server's scheduler, once a request of the run has been decoded."""
        return [
            f.pid
            for f in read_forwards(out / "forwards-fcfs.jsonl")[0]
            if f.kind == "decode" and any(rid.startswith("fcfs-") for rid in f.joined)
        ]

    wait_for(lambda: bool(serving()), "the first token", LIMIT_S)
    os.kill(serving()[0], signal.SIGKILL)
    shown, errors = replay.communicate(timeout=LIMIT_S)
    assert replay.returncode == 1, errors
    assert "fcfs at load 0.05: NOT VALID: decode-0 died" in shown

    header, records = read_records(out / "requests-fcfs.jsonl")
    assert header.note.startswith("decode-0 died")
    assert not header.counts
    assert len(records) == REQUESTS
    assert records[-1].outcome is RequestOutcome.CUT
    assert all(r.reason for r in records if r.outcome is not RequestOutcome.OK)
    arm = json.loads((out / "report.json").read_text())["arms"]["fcfs"]
    assert "decode-0 died" in arm["note"]
    assert arm["requests"] == REQUESTS
    assert 0 < arm["failures"] == sum(r.outcome is not RequestOutcome.OK for r in records)
    page = (out / "report.html").read_text()
    assert "fcfs at load 0.05 is not valid:" in page
    assert "decode-0 died" in page
