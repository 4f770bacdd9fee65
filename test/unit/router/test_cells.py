"""How servers are shared among cells, and how cells are kept running."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kairos.errors import InputError
from kairos.router.cells import assigned, supervise
from kairos.router.cli import parse
from kairos.router.workers.endpoint import Endpoint

MANY = 9


def servers(role: str, count: int) -> list[Endpoint]:
    return [Endpoint(role, f"http://10.0.0.{i}:30000") for i in range(count)]


@given(st.integers(0, 70), st.integers(0, 70), st.integers(1, 16), st.randoms())
def test_1_shares_are_disjoint_complete_and_even(prefill, decode, cells, random) -> None:
    everything = servers("prefill", prefill) + servers("decode", decode)
    shuffled = list(everything)
    random.shuffle(shuffled)
    shares = assigned(iter(shuffled), cells)
    assert sorted(e for share in shares for e in share) == sorted(everything)
    for role in ("prefill", "decode"):
        sizes = [sum(e.role == role for e in share) for share in shares]
        assert max(sizes) - min(sizes) <= 1
    assert shares == assigned(everything, cells)


def test_2_a_server_more_or_less_moves_few() -> None:
    before = assigned(servers("decode", 64), 8)
    for changed in (servers("decode", 65), servers("decode", 63)):
        after = assigned(changed, 8)
        stayed = sum(len(a & b) for a, b in zip(before, after, strict=True))
        assert stayed >= 48  # a plain round over the sorted list keeps 8 or none


# Stands in for a cell: tells its number and pid, then waits for a signal.
CELL = """
import os, signal, sys, threading
from kairos.router.cells import stop_with_parent
cell = sys.argv[sys.argv.index("--cell") + 1]
log = os.environ["CELL_LOG"]
def say(word):
    with open(log, "a") as file:
        file.write(f"{cell} {word} {os.getpid()}\\n")
def stop(*_):
    say("drained")
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGHUP, lambda *_: say("reloaded"))
stop_with_parent()
say("started")
if os.environ.get("CELL_CODE"):
    os._exit(int(os.environ["CELL_CODE"]))
while True:
    signal.pause()
"""


class Parent:
    """`supervise` in a process of its own, with stand-ins for its cells."""

    def __init__(self, folder: Path, *, cells: int = 2, code: str = "") -> None:
        # Found before the installed package when cells run `-m kairos.router`.
        script = folder / "cell.py"
        script.write_text(CELL)
        self.log = folder / "log"
        self.log.touch()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1] % 60_000 + 1024
        run = textwrap.dedent(f"""
            import asyncio, sys
            from kairos.router import cells
            from kairos.router.cli import parse
            start = asyncio.create_subprocess_exec
            async def stand_in(python, dash_m, module, *argv, **options):
                return await start(python, {str(script)!r}, *argv, **options)
            asyncio.create_subprocess_exec = stand_in
            cells._BACKOFF_S = (0.01, 0.02)
            argv = ["--workers-file", {str(script)!r}, "--cells", "{cells}",
                    "--port", "{self.port}", "--drain-timeout-s", "5"]
            sys.exit(cells.supervise(parse(argv), argv))
        """)
        environment = {**os.environ, "CELL_LOG": str(self.log), "CELL_CODE": code}
        self.process = subprocess.Popen([sys.executable, "-c", run], env=environment)

    def wait_for(self, word: str, count: int) -> list[tuple[int, int]]:
        """(cell, pid) of the first `count` who said `word`."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            lines = [line.split() for line in self.log.read_text().splitlines()]
            said = [(int(cell), int(pid)) for cell, what, pid in lines if what == word]
            if len(said) >= count:
                return said
            time.sleep(0.01)
        raise AssertionError(f"{word}: {self.log.read_text()}")


@pytest.fixture
def parent(tmp_path: Path):
    parent = Parent(tmp_path)
    yield parent
    if parent.process.poll() is None:
        parent.process.kill()
        parent.process.wait()


def test_3_cells_start_reload_and_drain_with_their_parent(parent: Parent) -> None:
    started = parent.wait_for("started", 2)
    assert {cell for cell, _ in started} == {0, 1}
    parent.process.send_signal(signal.SIGHUP)
    assert sorted(parent.wait_for("reloaded", 2)) == sorted(started)
    parent.process.send_signal(signal.SIGTERM)
    assert parent.process.wait(30) == 0
    assert sorted(parent.wait_for("drained", 2)) == sorted(started)


def test_4_a_cell_that_dies_is_started_again_and_the_other_is_left_alone(parent: Parent) -> None:
    (cell, pid), other = parent.wait_for("started", 2)[:2]
    os.kill(pid, signal.SIGKILL)
    again = parent.wait_for("started", 3)[2]
    assert again[0] == cell
    assert again[1] != pid
    os.kill(other[1], 0)


def test_5_cells_drain_when_their_parent_is_killed(parent: Parent) -> None:
    started = parent.wait_for("started", 2)
    parent.process.kill()
    assert sorted(parent.wait_for("drained", 2)) == sorted(started)


def test_6_a_cell_that_refuses_its_input_stops_all(tmp_path: Path) -> None:
    parent = Parent(tmp_path, code="2")
    assert parent.process.wait(60) == 2


def test_7_a_port_that_is_taken_is_noticed_before_any_cell_starts(tmp_path: Path) -> None:
    (tmp_path / "workers.yaml").write_text("")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1] % 65_000)
        argv = ["--workers-file", str(tmp_path / "workers.yaml"), "--cells", "2", "--port", port]
        with pytest.raises(InputError, match="cannot listen on them"):
            supervise(parse(argv), argv)
