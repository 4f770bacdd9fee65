"""One JSON line per ended request, written by a thread so that a slow disk delays no request."""

import logging
import queue
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

import orjson

from kairos.errors import InputError
from kairos.router.observe.access_record import AccessRecord
from kairos.router.text import clean

_log = logging.getLogger(__name__)

_MAX_LINES = 20_000  # that wait for the disk; about 10 MB
_BATCH = 512


class AccessLog:
    """The log of one router. Lines that the disk cannot take are dropped and counted.

    Args:
        target: a path; `-` for standard output; `off` for none.
        dropped: told how many lines were dropped.

    Raises:
        InputError: the file cannot be written to.
    """

    def __init__(self, target: str, dropped: Callable[[int], None] | None = None) -> None:
        self._path = None if target in ("-", "off") else Path(target)
        self._off = target == "off"
        self._dropped = dropped or (lambda _: None)
        self._reopen = threading.Event()
        # Lines, and None as the last one.
        self._lines: queue.Queue[bytes | None] = queue.Queue(_MAX_LINES)
        self._thread = threading.Thread(target=self._write, name="access-log", daemon=True)
        if not self._off:
            self._file = self._open()
            self._thread.start()

    def write(self, end: AccessRecord) -> None:
        """Log a request; returns at once."""
        if self._off:
            return
        try:
            self._lines.put_nowait(line_of(end, datetime.now(UTC)))
        except queue.Full:
            self._dropped(1)

    def reopen(self) -> None:
        """Open the file anew, which log rotation moved away."""
        self._reopen.set()

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what waits, for `timeout_s` at most, and stop."""
        if self._off or not self._thread.is_alive():
            return
        try:
            self._lines.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _open(self) -> FileIO:
        # Unbuffered: a batch is one write, so that processes can share a file.
        if self._path is None:
            return FileIO(sys.stdout.fileno(), "w", closefd=False)
        try:
            return FileIO(self._path, "a")
        except OSError as error:
            raise InputError(
                f"--access-log: cannot write to {self._path} ({error.strerror}); give a file that "
                "this user may write, - for stdout, or off"
            ) from None

    def _write(self) -> None:
        last = False
        while not last:
            batch = [self._lines.get()]
            while len(batch) < _BATCH and not self._lines.empty():
                batch.append(self._lines.get_nowait())
            last = None in batch
            lines = [line for line in batch if line is not None]
            if self._reopen.is_set():
                self._reopen.clear()
                self._rotate()
            try:
                rest = memoryview(b"".join(lines))
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError as error:
                self._dropped(len(lines))
                _log.error("access log: %d lines lost: %s", len(lines), error)
        self._file.close()

    def _rotate(self) -> None:
        try:
            fresh = self._open()
        except InputError as error:
            _log.error("%s; the old file stays open", error)
            return
        self._file.close()
        self._file = fresh


def line_of(end: AccessRecord, now: datetime) -> bytes:
    """The line of a request, newline included. Control characters come out escaped."""
    slo = end.slo
    objectives = slo.objectives if slo else {}
    fields = {
        "time": now.isoformat(timespec="milliseconds"),
        "outcome": end.outcome.value,
        "status": end.status,
        "reason": end.reason,
        "method": end.method,
        "path": end.path,
        "request_id": end.request_id,
        "client_request_id": end.client_request_id,
        "trace_id": end.trace_id,
        "peer": end.peer,
        "tenant": end.tenant,
        "model": end.model,
        "slo_class": slo.slo_class if slo else None,
        "ttft_slo_ms": objectives.get("ttft_ms"),
        "tpot_slo_ms": objectives.get("tpot_ms"),
        "best_effort": end.best_effort,
        "stream": end.stream,
        "sequences": end.sequences,
        "body_bytes": end.body_bytes,
        "input_tokens": end.input_tokens,
        "output_tokens": end.output_tokens,
        "queue_ms": _ms(end.queue_s),
        "ttft_ms": _ms(end.ttft_s),
        "tpot_ms": _ms(end.tpot_s),
        "duration_ms": _ms(end.duration_s),
        "attempts": end.attempts,
        "prefill": end.prefill,
        "decode": end.decode,
    }
    kept = {
        key: clean(value) if isinstance(value, str) else value
        for key, value in fields.items()
        if value is not None and value != ""
    }
    return orjson.dumps(kept, option=orjson.OPT_APPEND_NEWLINE)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)
