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
    """Write a record file at once, through a temporary file beside it."""
    encoder = msgspec.json.Encoder()
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(encoder.encode(header) + b"\n")
        for record in records:
            file.write(encoder.encode(record) + b"\n")
    partial.replace(path)


def read_records(path: Path) -> tuple[RunHeader, list[RequestRecord]]:
    """Read a file that `write_records` wrote.

    Raises:
        InputError: the file cannot be read, or a line is no header or record.
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
    """Return the first free path for the records of a run that does not count."""
    names = (out / f"rejected-{stem}.{i}.jsonl" for i in itertools.count(1))
    return next(path for path in names if not path.exists())


def rejected_in(folder: Path, stems: Sequence[str] = ("",)) -> list[Path]:
    """Return the record files of runs that did not count and were set aside, by name.

    Args:
        folder: folder of the records.
        stems: beginnings of the file names behind "rejected-".
    """
    starts = tuple(f"rejected-{stem}" for stem in stems)
    return [p for p in sorted(folder.glob("rejected-*.jsonl")) if p.name.startswith(starts)]


def probes_in(folder: Path, arms: Sequence[str]) -> list[Path]:
    """Return the record files of single loads of `arms`, as a goodput search leaves them."""
    return [path for arm in arms for path in sorted(folder.glob(f"requests-{arm}@*.jsonl"))]


def records_in(folder: Path) -> list[Path]:
    """Return the record files of a folder, by name.

    Raises:
        InputError: there are none.
    """
    found = sorted(folder.glob("requests-*.jsonl"))
    if not found:
        raise InputError(f"{folder}: no requests-*.jsonl in it")
    return found


def writable(path: Path) -> Path:
    """Return the folder `path`, created if missing.

    Raises:
        InputError: the folder cannot be written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        report = path / "report.json"
        report.open("ab").close()
        if not report.stat().st_size:
            report.unlink()
    except OSError as error:
        raise InputError(f"--out: cannot write to {path}: {error.strerror}") from error
    return path
