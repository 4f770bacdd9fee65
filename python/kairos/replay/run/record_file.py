"""Record files: a header, then one line per request."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from kairos.errors import InputError
from kairos.replay.client.record import RequestRecord
from kairos.replay.run.header import SCHEMA, RunHeader

T = TypeVar("T")


def write_records(path: Path, header: RunHeader, records: Sequence[RequestRecord]) -> None:
    """Write DIR/requests-ARM.jsonl in one go, through a temporary file beside it."""
    encoder = msgspec.json.Encoder()
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(encoder.encode(header) + b"\n")
        for record in records:
            file.write(encoder.encode(record) + b"\n")
    partial.replace(path)


def read_records(path: Path) -> tuple[RunHeader, list[RequestRecord]]:
    """Read what `write_records` wrote.

    Raises:
        InputError: unreadable, or a line that is no header or record.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"cannot read records {path}: {error.strerror}") from error
    if not lines:
        raise InputError(f"{path}: empty; a header line is needed")
    schema = _decode(lines[0], _Schema, f"{path}, line 1").schema
    if schema != SCHEMA:
        raise InputError(f"{path}, line 1, field schema: {schema}, allowed is {SCHEMA}")
    header = _decode(lines[0], RunHeader, f"{path}, line 1")
    records = [
        _decode(line, RequestRecord, f"{path}, line {number}")
        for number, line in enumerate(lines[1:], 2)
    ]
    return header, records


class _Schema(msgspec.Struct, frozen=True):
    schema: int


def _decode(line: bytes, kind: type[T], where: str) -> T:
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.DecodeError as error:
        raise InputError(f"{where}: {error}") from error


def rejected_path(out: Path, stem: str) -> Path:
    """The first name that is free."""
    names = (out / f"rejected-{stem}.{i}.jsonl" for i in itertools.count(1))
    return next(path for path in names if not path.exists())


def rejected_in(folder: Path, stems: Sequence[str] = ("",)) -> list[Path]:
    """Record files of runs that did not count and were set aside, by name.

    Args:
        stems: what follows "rejected-".
    """
    starts = tuple(f"rejected-{stem}" for stem in stems)
    return [p for p in sorted(folder.glob("rejected-*.jsonl")) if p.name.startswith(starts)]


def probes_in(folder: Path, arms: Sequence[str]) -> list[Path]:
    """Record files of single loads of `arms`, which are those that a goodput search leaves."""
    return [path for arm in arms for path in sorted(folder.glob(f"requests-{arm}@*.jsonl"))]


def records_in(folder: Path) -> list[Path]:
    """Record files of a folder, by name.

    Raises:
        InputError: there are none.
    """
    found = sorted(folder.glob("requests-*.jsonl"))
    if not found:
        raise InputError(f"{folder}: no requests-*.jsonl in it")
    return found


def writable(path: Path) -> Path:
    """The folder `path`, made when missing.

    Raises:
        InputError: it cannot be written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / "report.json"
        probe.open("ab").close()
        if not probe.stat().st_size:
            probe.unlink()
    except OSError as error:
        raise InputError(f"--out: cannot write to {path}: {error.strerror}") from error
    return path
