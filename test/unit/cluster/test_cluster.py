"""The cluster launcher with fake servers."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kairos.cluster import Cluster, ClusterError, ClusterSpec, ServerDiedError
from kairos.errors import InputError
from support import launch_fake
from support.processes import MARK, marked, new_mark, wait_none


@pytest.fixture
def mark():
    mark = new_mark()
    yield mark
    left = marked(mark)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


SINGLE = {"prefill": 0, "decode": 0}


@pytest.fixture
def spec(mark):
    def build(*args, **fields):
        fields = {"stop_grace_s": 0.1, "start_limit_s": 60.0} | fields
        return ClusterSpec(
            model="fake model",
            args=(*launch_fake.NO_MOONCAKE, *args),
            env={MARK: mark},
            server_command=launch_fake.SERVER,
            router_command=launch_fake.SERVER,
            **fields,
        )

    return build


def rooms(server):
    return set(re.findall(r"room (\d+)", server.log.read_text()))


def await_death(cluster, limit_s=20.0):
    with pytest.raises(ServerDiedError) as died:
        cluster.wait(limit_s)
    return died.value


def pairs(cluster: Cluster) -> list[int]:
    """Number of generations that each pair of prefill and decode server has in common."""
    return [len(rooms(p) & rooms(d)) for p in cluster.prefill for d in cluster.decode]


class TestStart:
    def test_every_pair_and_the_router_served_one_generation(self, spec, tmp_path):
        with Cluster(spec(prefill=2, decode=2), tmp_path / "log dir") as cluster:
            # A log may be a moment behind the answer that made the server ready.
            deadline = time.monotonic() + 10.0
            while pairs(cluster) != [1] * 4 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert pairs(cluster) == [1] * 4
            router_log = cluster.servers[-1].log.read_text()
            assert cluster.url == cluster.servers[-1].url
            ports = [server.port for server in cluster.servers]
            ports += [server.bootstrap_port for server in cluster.prefill]
        assert len(set(ports)) == 7
        assert "room None" in router_log  # the router chooses the room itself

    @pytest.mark.slow
    def test_the_bootstrap_port_in_the_request_is_the_prefill_servers(self, spec, tmp_path):
        with Cluster(spec(router=None), tmp_path) as cluster:
            port = cluster.prefill[0].bootstrap_port
            assert f"port {port}" in cluster.decode[0].log.read_text()
            with pytest.raises(RuntimeError, match="no router"):
                _ = cluster.url

    def test_collectors_are_frozen_once_when_the_cluster_is_ready(self, spec, tmp_path):
        with Cluster(spec(), tmp_path) as cluster:
            servers = (*cluster.prefill, *cluster.decode)
            deadline = time.monotonic() + 10.0
            while time.monotonic() < deadline and not all(
                "gc frozen" in server.log.read_text() for server in servers
            ):
                time.sleep(0.05)
            assert all(server.log.read_text().count("gc frozen") == 1 for server in servers)
            assert "gc frozen" not in cluster.servers[-1].log.read_text()

    def test_single_server_is_the_whole_cluster(self, spec, tmp_path):
        with Cluster(spec(**SINGLE), tmp_path) as cluster:
            assert [server.name for server in cluster.servers] == ["single"]
            assert cluster.url == cluster.servers[0].url
            cluster.check()

    @pytest.mark.slow
    def test_servers_write_bytecode(self, spec, tmp_path, monkeypatch):
        monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        with Cluster(spec(**SINGLE), tmp_path) as cluster:
            assert "PYTHONDONTWRITEBYTECODE None" in cluster.servers[0].log.read_text()

    @pytest.mark.slow
    def test_stats_count_every_process(self, spec, tmp_path):
        with Cluster(spec("--fake-children", **SINGLE), tmp_path) as cluster:
            (single,) = cluster.stats().servers
            assert single.processes in (2, 3)  # the grandchild may still be starting
            assert 1 << 20 < single.pss_bytes < 1 << 30
            assert 0 < single.start_s <= cluster.stats().ready_s


class TestFailureAtStart:
    def test_death_is_reported_with_code_and_last_lines(self, spec, tmp_path, mark):
        cluster = Cluster(spec(decode_args=("--fake-exit", "3")), tmp_path)
        with pytest.raises(ServerDiedError) as died:
            cluster.start()
        message = str(died.value)
        assert message.startswith("decode-0 died at start: exit code 3;")
        assert str(tmp_path / "decode-0.log") in message
        assert [f"line {i} before the end" in message for i in (9, 10, 29)] == [False, True, True]
        assert marked(mark) == {}

    def test_log_directory_that_cannot_be_created_is_named(self, spec, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="file/log: Not a directory"):
            Cluster(spec(), tmp_path / "file" / "log").start()

    def test_death_during_a_hanging_generation_is_reported(self, spec, tmp_path, mark):
        cluster = Cluster(spec("--fake-hang"), tmp_path)

        def kill():
            log = tmp_path / "decode-0.log"
            while not log.exists() or "room" not in log.read_text():
                time.sleep(0.02)
            os.kill(cluster.decode[0].pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(ServerDiedError, match=r"decode-0 died at start: .*\(SIGKILL\)"):
            cluster.start()
        assert not [t for t in threading.enumerate() if t.name.startswith("kairos-cluster")]
        killer.join()
        assert marked(mark) == {}

    @pytest.mark.slow
    def test_not_ready_in_time_names_the_stage_of_each(self, spec, tmp_path, mark):
        limited = spec(prefill_args=("--fake-listen-after", "600"), start_limit_s=0.5)
        with pytest.raises(
            ClusterError, match=r"not ready after 0\.5 s: prefill-0 starting, decode-0"
        ):
            Cluster(limited, tmp_path).start()
        assert marked(mark) == {}

    @pytest.mark.slow
    def test_failing_generation_is_repeated_until_the_limit(self, spec, tmp_path):
        limited = spec("--fake-status", "500", **SINGLE, start_limit_s=0.9)
        with pytest.raises(ClusterError, match=r"single listening, single answers .* with 500"):
            Cluster(limited, tmp_path).start()
        assert (tmp_path / "single.log").read_text().count("room") > 1

    @pytest.mark.slow
    def test_refused_generation_is_reported_at_once(self, spec, tmp_path):
        refusing = spec("--fake-status", "400", **SINGLE)
        with pytest.raises(ClusterError, match="single answers a generation with 400"):
            Cluster(refusing, tmp_path).start()
        assert (tmp_path / "single.log").read_text().count("room") == 1


class TestPorts:
    @pytest.mark.slow
    def test_explicit_port_is_that_of_the_url(self, spec, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with Cluster(spec(port=port), tmp_path) as cluster:
            assert cluster.url == f"http://127.0.0.1:{port}"

    def test_explicit_port_in_use_is_reported_before_any_process_starts(self, spec, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with pytest.raises(InputError, match=f"port {port} .* in use"):
                Cluster(spec(port=port), tmp_path).start()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.slow
    def test_port_lost_to_another_process_is_replaced_once(self, spec, tmp_path):
        stolen = tmp_path / "stolen"
        args = ("--fake-port-taken-once", str(stolen))
        with Cluster(spec(decode_args=args), tmp_path / "log") as cluster:
            assert stolen.exists()
            cluster.check()

    @pytest.mark.slow
    def test_port_lost_twice_is_reported(self, spec, tmp_path):
        args = ("--fake-port-taken-once", str(tmp_path / "no directory" / "stolen"))
        with pytest.raises(ServerDiedError, match="No such file"):
            Cluster(spec(decode_args=args), tmp_path / "log").start()


class TestFailureInUse:
    def test_death_ends_the_wait_and_is_reported_again(self, spec, tmp_path, mark):
        with Cluster(spec(), tmp_path) as cluster:
            cluster.check()
            os.kill(cluster.prefill[0].pid, signal.SIGKILL)
            died = await_death(cluster)
            assert (died.name, died.exit_code) == ("prefill-0", -signal.SIGKILL)
            assert "while serving" in str(died)
            with pytest.raises(ServerDiedError):
                cluster.check()
        assert marked(mark) == {}

    @pytest.mark.slow
    def test_death_of_the_router_is_reported(self, spec, tmp_path):
        with Cluster(spec(), tmp_path) as cluster:
            os.kill(cluster.servers[-1].pid, signal.SIGTERM)
            assert await_death(cluster).name == "router"

    def test_killed_supervisor_is_reported_and_leaves_no_process(self, spec, tmp_path, mark):
        with Cluster(spec("--fake-children", **SINGLE), tmp_path) as cluster:
            os.kill(os.getsid(cluster.servers[0].pid), signal.SIGKILL)  # the session's leader
            died = await_death(cluster)
            assert died.exit_code is None
            # A process that left the session before its supervisor was killed cannot be found.
            deadline = time.monotonic() + 20
            while not all(" leaf" in command for command in marked(mark).values()):
                assert time.monotonic() < deadline
                time.sleep(0.02)
        left = marked(mark)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        wait_none(mark)


class TestStop:
    @pytest.mark.slow
    def test_trees_that_ignore_sigterm_end(self, spec, tmp_path, mark):
        with Cluster(spec("--fake-children", "--fake-ignore-term"), tmp_path):
            assert len(marked(mark)) >= 3 * 3
        assert marked(mark) == {}

    def test_an_exception_stops_the_cluster_and_passes_through(self, spec, tmp_path, mark):
        with pytest.raises(ZeroDivisionError), Cluster(spec(**SINGLE), tmp_path):
            _ = 1 / 0
        assert marked(mark) == {}

    @pytest.mark.slow
    def test_stop_is_repeatable_and_a_stopped_cluster_starts_again(self, spec, tmp_path):
        cluster = Cluster(spec(**SINGLE), tmp_path)
        for _ in range(2):
            cluster.start()
            cluster.check()
            cluster.stop()
            cluster.stop()
        with pytest.raises(RuntimeError, match="not running"):
            cluster.check()

    @pytest.mark.slow
    def test_files_threads_and_signal_handlers_do_not_leak(self, spec, tmp_path):
        def use():
            with Cluster(spec(), tmp_path):
                pass
            with pytest.raises(ServerDiedError):
                Cluster(spec("--fake-exit", "1"), tmp_path).start()

        use()
        before = (len(list(Path("/proc/self/fd").iterdir())), threading.active_count())
        handler = signal.getsignal(signal.SIGTERM)
        use()
        assert (len(list(Path("/proc/self/fd").iterdir())), threading.active_count()) == before
        assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.slow
class TestEndOfTheLauncher:
    """A launcher in its own process, ended in every phase."""

    @pytest.fixture(params=["starting", "ready"])
    def launcher(self, request, tmp_path, mark):
        args = ["--fake-children"]
        if request.param == "starting":
            args += ["--fake-listen-after", "600"]
        script = [sys.executable, str(Path(launch_fake.__file__))]
        process = subprocess.Popen(
            [*script, str(tmp_path / "log dir"), mark, *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if request.param == "ready":
            assert process.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 20
        while sum(" leaf" in command for command in marked(mark).values()) < 2:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        yield process
        process.kill()
        process.communicate()

    @pytest.mark.parametrize(
        ("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)]
    )
    def test_signals_end_the_launcher_after_its_last_process(self, launcher, mark, number, code):
        launcher.send_signal(number)
        _, errors = launcher.communicate(timeout=30)
        assert marked(mark) == {}
        assert launcher.returncode == code
        assert "died" not in errors

    def test_killed_launcher_leaves_no_process(self, launcher, mark):
        launcher.kill()
        launcher.wait()
        assert wait_none(mark) == {}
