"""A supervised process and its process tree."""

import os
import select
import signal
import subprocess
import sys
import time

import pytest

from kairos.cluster.process import SupervisedProcess
from support.fake_server import CHILD
from support.processes import MARK, is_alive, marked, new_mark, wait_none

# A server with a child and a grandchild that ignore SIGTERM; the grandchild has its own session.
TREE = (
    "import subprocess, sys, time\n"
    "subprocess.Popen([sys.executable, '-S', '-c', sys.argv[1], 'child', sys.argv[1]])\n"
    "time.sleep(600)\n"
)

FORKING_LAUNCHER = """
import os, pathlib, sys, time
from kairos.cluster.process import SupervisedProcess

command = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
process = SupervisedProcess("single", command, os.environ, pathlib.Path(sys.argv[1]), 0.2)
fork = os.fork()
if fork:
    print(fork, flush=True)
else:
    os.close(1)
time.sleep(600)
"""


@pytest.fixture
def mark():
    mark = new_mark()
    yield mark
    left = wait_none(mark, limit_s=0.0)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.fixture
def run(tmp_path, mark):
    started = []

    def start(code, *argv, log="process.log", grace_s=0.2):
        command = [sys.executable, "-S", "-c", code, *argv]
        process = SupervisedProcess(
            "prefill-0", command, {**os.environ, MARK: mark}, tmp_path / log, grace_s
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.request_stop()
        process.wait_gone()


def await_report(process, limit_s=20.0):
    readable, _, _ = select.select([process], [], [], limit_s)
    assert readable
    return process.poll()


def await_tree(mark):
    """The supervisor, the server, its child and its grandchild."""
    deadline = time.monotonic() + 20
    while len(marked(mark)) < 4 or not any(" leaf" in c for c in marked(mark).values()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return set(marked(mark))


@pytest.mark.parametrize(
    ("code", "expected"),
    [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 11)", -11), ("", 0)],
)
def test_exit_code_is_reported(run, code, expected):
    assert await_report(run(code)) == (True, expected)


def test_server_that_kills_its_own_group_leaves_the_supervisor_alive(run):
    # Upstream's scheduler does this under SGLANG_KILLPG_ON_SCHEDULER_EXCEPTION.
    assert await_report(run("import os; os.killpg(0, 9)")) == (True, -signal.SIGKILL)


def test_output_goes_to_the_log_and_stdin_is_empty(run, tmp_path):
    code = "import sys; print('out', repr(sys.stdin.read())); print('err', file=sys.stderr)"
    log = tmp_path / "a b" / "c d.log"
    log.parent.mkdir()
    await_report(run(code, log=log))
    assert sorted(log.read_text().splitlines()) == ["err", "out ''"]


def test_command_that_cannot_run_is_named_in_its_log(tmp_path):
    process = SupervisedProcess("x", ["/no/such file"], os.environ, tmp_path / "log", 0.2)
    assert await_report(process) == (True, 127)
    process.request_stop()
    process.wait_gone()
    assert "cannot run /no/such file" in (tmp_path / "log").read_text()


def test_the_pid_is_the_commands_own(run):
    process = run("import time; time.sleep(600)")
    os.kill(process.pid, signal.SIGINT)
    assert await_report(process)[0]


def test_server_that_ends_on_sigterm_has_time_to_do_so(run, tmp_path):
    process = run(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('goodbye')))\n"
        "print('up', flush=True)\n"
        "time.sleep(600)",
        grace_s=20.0,
    )
    while "up" not in process.log.read_text():
        time.sleep(0.02)
    begin = time.monotonic()
    process.request_stop()
    process.wait_gone()
    assert "goodbye" in process.log.read_text()
    assert time.monotonic() - begin < 15


def test_stop_ends_the_whole_tree(run, mark):
    process = run(TREE, CHILD)
    await_tree(mark)
    process.request_stop()
    process.wait_gone()
    assert marked(mark) == {}


@pytest.mark.slow
def test_death_of_the_server_ends_its_tree(run, mark):
    process = run(TREE, CHILD)
    await_tree(mark)
    os.kill(process.pid, signal.SIGKILL)
    assert await_report(process) == (True, -signal.SIGKILL)
    assert wait_none(mark) == {}


@pytest.mark.slow
def test_sigterm_to_the_supervisor_ends_the_tree(run, mark):
    process = run(TREE, CHILD)
    await_tree(mark)
    os.kill(process.supervisor_pid, signal.SIGTERM)
    assert wait_none(mark) == {}


def test_server_dies_with_its_supervisor(run):
    process = run("import time; time.sleep(600)")
    os.kill(process.supervisor_pid, signal.SIGKILL)
    assert await_report(process) == (True, None)
    deadline = time.monotonic() + 20
    while is_alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(process.pid)


def test_children_left_by_a_killed_supervisor_are_killed_by_session(run, mark):
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
    process = run(
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-S', '-c', sys.argv[1], 'leaf'])\n"
        "time.sleep(600)",
        stubborn,
    )
    while not any(" leaf" in command for command in marked(mark).values()):
        time.sleep(0.02)
    os.kill(process.supervisor_pid, signal.SIGKILL)
    assert await_report(process) == (True, None)
    process.kill_session()
    assert marked(mark) == {}


@pytest.mark.slow
def test_a_forked_copy_of_the_launcher_does_not_keep_the_server_alive(tmp_path, mark):
    launcher = subprocess.Popen(
        [sys.executable, "-c", FORKING_LAUNCHER, str(tmp_path / "log")],
        env={**os.environ, MARK: mark},
        stdout=subprocess.PIPE,
    )
    fork = int(launcher.stdout.readline())
    launcher.kill()
    launcher.communicate()
    deadline = time.monotonic() + 20
    while set(marked(mark)) != {fork} and time.monotonic() < deadline:
        time.sleep(0.02)
    assert set(marked(mark)) == {fork}
    os.kill(fork, signal.SIGKILL)
    wait_none(mark)
