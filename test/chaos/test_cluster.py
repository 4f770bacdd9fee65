"""The launcher with real SGLang servers, killed in every phase, in emulated time."""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from kairos.cluster import Cluster, ServerDiedError
from kairos.cluster.supervise import descendants
from support.clusters import EMULATED_PAIR, Config
from support.processes import is_alive

pytestmark = pytest.mark.engine

SCRIPT = Path(__file__).parents[2] / "scripts" / "cluster.py"
SINGLE = Config(profile="tiny-fast", prefill=0, decode=0)
START_LIMIT_S = 240


class Launcher:
    """`scripts/cluster.py` in a process of its own."""

    def __init__(self, log_dir: Path, *options: str) -> None:
        self.log_dir = log_dir
        self._process = subprocess.Popen(
            [
                *(sys.executable, str(SCRIPT), "--profile", "tiny-fast"),
                *("--log-dir", str(log_dir), *options),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.seen: set[int] = set()

    def snapshot(self) -> list[int]:
        """Pids below the launcher now; remembered for `left` and `kill_all`."""
        now = descendants(self._process.pid)
        self.seen.update(now)
        return now

    def await_ready(self) -> str:
        """The URL from the last line of a ready cluster."""
        printed = b""
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            self.snapshot()
            if select.select([self._process.stdout], [], [], 0.5)[0]:
                printed += os.read(self._process.stdout.fileno(), 4096)
            if found := re.search(r"^ready after .*: (http://\S+) .*\n", printed.decode(), re.M):
                self.snapshot()
                return found[1]
            assert self._process.poll() is None, self._process.stderr.read()
        raise AssertionError(f"not ready: {printed!r}")

    def await_imports(self) -> int:
        """Pid of a server's child that imports: it has not arranged to die with its parent yet."""
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            for pid in self.snapshot():
                with contextlib.suppress(OSError):
                    if b"spawn_main" in Path("/proc", str(pid), "cmdline").read_bytes():
                        time.sleep(1.0)
                        self.snapshot()
                        return pid
            assert self._process.poll() is None, self._process.stderr.read()
            time.sleep(0.1)
        raise AssertionError("no child process of a server")

    def interrupt(self) -> None:
        """Send what Ctrl-C sends."""
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def wait(self) -> tuple[int, str]:
        """Exit code and stderr."""
        _, errors = self._process.communicate(timeout=60)
        return self._process.returncode, errors

    def left(self, limit_s: float = 30.0) -> list[int]:
        """Pids still alive after at most `limit_s` seconds."""
        deadline = time.monotonic() + limit_s
        while any(map(is_alive, self.seen)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return [pid for pid in self.seen if is_alive(pid)]

    def kill_all(self) -> None:
        self.kill()
        for pid in self.left(limit_s=5.0):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def launch(tmp_path):
    launchers = []

    def start(*options):
        launchers.append(Launcher(tmp_path / "log dir", *options))
        return launchers[-1]

    yield start
    for launcher in launchers:
        launcher.kill_all()


def generate(url):
    body = {"text": "hello", "sampling_params": {"max_new_tokens": 4, "ignore_eos": True}}
    request = urllib.request.Request(
        f"{url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


def test_pair_serves_and_its_killed_launcher_leaves_no_process(launch):
    launcher = launch()
    url = launcher.await_ready()
    assert generate(url)["meta_info"]["completion_tokens"] == 4
    assert len(launcher.seen) >= 3 + 2 * 3 + 1  # supervisors, three per server, router
    launcher.kill()
    assert launcher.left() == []


@pytest.mark.long
def test_launcher_killed_during_imports_leaves_no_process(launch):
    launcher = launch()
    launcher.await_imports()
    launcher.kill()
    assert launcher.left() == []


@pytest.mark.long
def test_supervisor_killed_during_imports_ends_the_cluster(launch):
    launcher = launch("--prefill", "0", "--decode", "0")
    child = launcher.await_imports()
    os.kill(os.getsid(child), signal.SIGKILL)
    code, errors = launcher.wait()
    assert code == 1
    assert "single died at start: its supervisor was killed" in errors
    assert launcher.left(limit_s=0.0) == []


def test_interrupt_during_imports_ends_every_process(launch):
    launcher = launch()
    launcher.await_imports()
    launcher.interrupt()
    assert launcher.wait()[0] == 130
    assert launcher.left(limit_s=0.0) == []


def test_refused_flag_is_reported_with_the_servers_message(launch):
    launcher = launch("--prefill", "0", "--decode", "0", "--", "--no-such-flag")
    code, errors = launcher.wait()
    assert code == 1
    assert "single died at start: exit code 2" in errors
    assert "unrecognized arguments: --no-such-flag" in errors
    assert launcher.left(limit_s=0.0) == []


@pytest.mark.long
def test_a_dead_scheduler_is_the_death_of_its_server(tmp_path):
    with Cluster(SINGLE.spec(tmp_path / "models"), tmp_path / "log") as cluster:
        (single,) = cluster.stats().servers
        assert single.processes >= 3
        assert single.pss_bytes > 200e6
        assert generate(cluster.url)["meta_info"]["completion_tokens"] == 4
        children = descendants(cluster.servers[0].pid)
        (scheduler,) = (
            pid
            for pid in children
            if Path("/proc", str(pid), "cmdline").read_bytes().startswith(b"sglang::scheduler")
        )
        os.kill(scheduler, signal.SIGKILL)
        with pytest.raises(ServerDiedError, match="single died while serving"):
            cluster.wait(60)
    assert not any(map(is_alive, children))


@pytest.mark.long
def test_scheduler_dies_with_its_servers_main_process(tmp_path):
    spec = EMULATED_PAIR.spec(tmp_path / "models")
    with Cluster(spec, tmp_path / "log") as cluster:
        decode = cluster.decode[0].pid
        children = descendants(decode)
        os.kill(decode, signal.SIGKILL)
        with pytest.raises(ServerDiedError, match=r"decode-0 died while serving: .*SIGKILL"):
            cluster.wait(60)
    assert not any(map(is_alive, children))


@pytest.mark.long
def test_interrupt_of_a_ready_cluster_ends_every_process(launch):
    launcher = launch("--prefill", "0", "--decode", "0")
    launcher.await_ready()
    launcher.interrupt()
    assert launcher.wait()[0] == 130
    assert launcher.left(limit_s=0.0) == []
