"""The command line of calibration against a fake server."""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kairos.calibrate.cli import main
from kairos.calibrate.servers import describe_servers
from kairos.cluster import ClusterSpec
from kairos.errors import InputError
from kairos.latency import InstanceLimits, load_profile
from support.calibration_server import FakeServer, serving

pytestmark = pytest.mark.alone

GRID = [
    *("--batches", "1,2,9", "--contexts", "64,128"),
    *("--new", "16,32,64,128,192,256", "--prefixes", "0"),
]


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with serving() as server:
        yield server


def no_cluster(_profile: str) -> ClusterSpec:
    raise AssertionError("no cluster was asked for")


def run(fake: FakeServer, out: Path, *flags: str) -> int:
    return main(
        ["--url", fake.url, "--out", str(out), *GRID, "--prefixes", "0", *flags], no_cluster
    )


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert error.startswith("calibrate: ")
    return error


def test_calibration_writes_profile_samples_and_picture(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "own.json"
    assert run(fake, out, "--name", "own", "--model", "fake") == 0
    shown = capsys.readouterr().out
    assert "10 points, 2 do not fit" in shown
    assert "skipped: decode 9 x 64: more than 8 requests run at once" in shown
    assert "Relative error of the fit, measured" in shown
    profile = load_profile(out)
    assert (profile.name, profile.limits) == ("own", InstanceLimits(64, 20_000, 8))
    assert "secret" not in profile.provenance.source
    assert "--chunked-prefill-size 64" in profile.provenance.source
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    text = out.with_suffix(".samples.jsonl").read_text()
    assert "secret" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line.get("type") for line in lines].count("decode") == 4
    assert [line.get("type") for line in lines].count("prefill") == 6
    assert sum("skipped" in line for line in lines) == 2
    lengths = {len(body["input_ids"]) for body in fake.bodies}
    assert {16, 32, 64, 128, 192, 256} <= lengths
    assert all(body["sampling_params"]["ignore_eos"] and body["stream"] for body in fake.bodies)
    assert not any("custom_params" in body["sampling_params"] for body in fake.bodies)


def test_kairos_servers_receive_the_loosest_slo(fake: FakeServer, tmp_path: Path) -> None:
    assert fake.info is not None
    fake.info["internal_states"][0] |= {"kairos": {}}
    fake.stop_after = 1
    run(fake, tmp_path / "own.json")
    slo = fake.bodies[0]["sampling_params"]["custom_params"]["kairos"]
    assert slo["ttft_ms"] >= 3e6


def test_unreachable_server_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--url", "http://127.0.0.1:1", "--out", str(tmp_path / "own.json")]
    assert main(flags, no_cluster) == 2
    assert "no answer of an SGLang server at http://127.0.0.1:1/server_info" in one_line(capsys)


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("whole", "does not stream tokens"),
        ("burst", "tokens arrived at once"),
        ("refuse", "status 400: .*token id out of range"),
    ],
)
def test_answers_without_a_stream_of_tokens_are_refused(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str, says: str
) -> None:
    fake.mode = mode
    assert run(fake, tmp_path / "own.json") == 2
    assert re.search(says, one_line(capsys))


def test_other_models_roles_and_routers_are_refused(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fake.info is not None
    out = tmp_path / "own.json"
    assert run(fake, out, "--model", "other") == 2
    assert f"--model: {fake.url} serves /models/fake, fake, not other" in one_line(capsys)
    fake.info["disaggregation_mode"] = "decode"
    assert run(fake, out) == 2
    assert f"{fake.url} is decode; allowed are" in one_line(capsys)
    fake.info = {"decode": [], "prefill": []}
    assert run(fake, out) == 2
    assert "is it SGLang?" in one_line(capsys)
    fake.info = None
    assert run(fake, out) == 2
    assert "name the servers behind it" in one_line(capsys)


def test_pair_is_recognised_by_its_roles(fake: FakeServer) -> None:
    with serving() as other:
        assert fake.info is not None
        assert other.info is not None
        fake.info["disaggregation_mode"] = "decode"
        other.info |= {
            "disaggregation_mode": "prefill",
            "disaggregation_bootstrap_port": 8998,
            "max_total_num_tokens": 10_000,
        }
        servers = describe_servers([fake.url, other.url])
        assert [endpoint.url for endpoint in servers.endpoints] == [other.url, fake.url]
        assert (servers.endpoints[0].bootstrap_host, servers.endpoints[0].bootstrap_port) == (
            "127.0.0.1",
            8998,
        )
        assert servers.limits.kv_tokens == 10_000
        with pytest.raises(InputError, match="allowed are one, or a prefill and a decode"):
            describe_servers([fake.url] * 3)


def test_servers_that_fail_during_the_sweep_leave_samples_and_no_profile(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.stop_after = 3
    out = tmp_path / "own.json"
    assert run(fake, out) == 1
    assert "not the whole grid: failed" in capsys.readouterr().out
    assert "skipped" in out.with_suffix(".samples.jsonl").read_text()
    assert not out.exists()


def test_interrupt_writes_the_samples_measured_so_far(fake: FakeServer, tmp_path: Path) -> None:
    def interrupt() -> None:
        while len(fake.bodies) < 20:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    out = tmp_path / "own.json"
    assert run(fake, out) == 130
    thread.join()
    lines = [json.loads(x) for x in out.with_suffix(".samples.jsonl").read_text().splitlines()]
    assert any("seconds" in line for line in lines)
    assert any(line.get("skipped", {}).get("reason") == "interrupted" for line in lines)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--batches", "1,x"], "'1,x' is no list of numbers"),
        (["--batches", "0"], "--batches: 0 is out of range"),
        (["--budget-s", "nan"], "--budget-s: nan is out of range"),
        (["--base", "nothing"], "unknown profile 'nothing'"),
        (["--out", "profile.txt"], "must end in .json"),
        (["--emulated", "tiny-fast"], "not allowed with argument --url"),
    ],
)
def test_bad_flags_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], says: str
) -> None:
    own = ["--url", "http://127.0.0.1:1", "--out", str(tmp_path / "own.json")]
    assert main([*own, *flags], no_cluster) == 2
    assert says in one_line(capsys)


def test_servers_or_an_emulated_profile_are_required(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", "own.json"], no_cluster) == 2
    assert "one of the arguments --url --emulated is required" in one_line(capsys)
