"""Messages about a process that ended."""

import pytest

from kairos.cluster.failure import ServerDiedError, describe_exit, log_tail


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (3, "exit code 3"),
        (-9, "exit code -9 (SIGKILL)"),
        (-250, "exit code -250"),
        (None, "its supervisor was killed, exit code unknown"),
    ],
)
def test_exit_code_in_words(code, words):
    assert describe_exit(code) == words


def test_tail_is_the_last_lines_that_are_not_empty(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"".join(b"line %d\n\n" % i for i in range(50)) + b"\xff cut")
    assert log_tail(log) == [*(f"line {i}" for i in range(31, 50)), "\ufffd cut"]


def test_the_tail_of_a_long_log_is_read_from_its_end(tmp_path):
    log = tmp_path / "log"
    log.write_text("x" * 200_000 + "\nend\n")
    assert log_tail(log, lines=1) == ["end"]


def test_missing_log_has_no_tail(tmp_path):
    assert log_tail(tmp_path / "missing") == []


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        ("OSError: [Errno 98] Address already in use", True),
        ("error while attempting to bind on address: address already in use", True),
        ("Port is already in use. nccl_port=1", True),
        ("ValueError: something else", False),
    ],
)
def test_taken_port_is_recognised_in_the_log(tmp_path, line, taken):
    log = tmp_path / "log"
    log.write_text(f"{line}\nkilled\n")
    assert ServerDiedError("decode-0", 1, log, "at start").port_taken is taken
