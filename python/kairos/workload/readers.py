"""Readers of traces: the normalised format and three public ones.

| format     | content                                                                          |
|------------|----------------------------------------------------------------------------------|
| normalised | JSON lines: arrival_s, input_tokens, output_tokens, optional hash_ids            |
| mooncake   | JSON lines: timestamp (ms), input_length, output_length, optional hash_ids       |
| azure      | CSV: TIMESTAMP (date and time), ContextTokens, GeneratedTokens                   |
| burstgpt   | CSV: Timestamp (s), Model, Request tokens, Response tokens, Total tokens, Log Type |

Any of them may be compressed with gzip. The content decides, not the file's name.
"""

import csv
import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from kairos.errors import InputError
from kairos.workload.trace import BLOCK_TOKENS, Trace, TraceRequest

MAX_TOKENS = 100_000_000
MAX_TIME_S = 1e10  # beyond any Unix time in seconds; catches milliseconds and nanoseconds
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """A trace format: its fields and their form.

    Attributes:
        table: True for CSV with a header line, False for JSON lines.
        arrival, inputs, outputs: field names.
        seconds: turns the arrival field into seconds; raises ValueError.
        arrival_form: the values that `seconds` accepts, for messages.
    """

    table: bool
    arrival: str
    inputs: str
    outputs: str
    seconds: Callable[[Any], float]
    arrival_form: str


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    return float(value)


def _date_time(value: str) -> float:
    """Seconds of a date and time; UTC without a zone.

    The fraction is parsed apart: Azure writes seven decimals, and `datetime` reads six.
    """
    whole, dot, rest = value.strip().partition(".")
    digits = len(rest) - len(rest.lstrip("0123456789"))
    fraction, zone = rest[:digits], rest[digits:]
    if dot and not fraction:
        raise ValueError
    moment = datetime.fromisoformat(whole + zone)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp() + (float(f"0.{fraction}") if fraction else 0.0)


_SECONDS = f"seconds, finite, 0 to {MAX_TIME_S:g}"
FORMATS: Mapping[str, TraceFormat] = {
    "normalised": TraceFormat(
        False, "arrival_s", "input_tokens", "output_tokens", _number, _SECONDS
    ),
    "mooncake": TraceFormat(
        False,
        "timestamp",
        "input_length",
        "output_length",
        lambda value: _number(value) / 1e3,
        f"milliseconds, finite, 0 to {MAX_TIME_S * 1e3:g}",
    ),
    "azure": TraceFormat(
        True,
        "TIMESTAMP",
        "ContextTokens",
        "GeneratedTokens",
        _date_time,
        "a date and time such as 2023-11-16 18:15:46.6805900",
    ),
    "burstgpt": TraceFormat(
        True, "Timestamp", "Request tokens", "Response tokens", _number, _SECONDS
    ),
}


def read_trace(path: str | Path, format_name: str | None = None) -> Trace:
    """Read a trace file whole.

    Args:
        path: the file.
        format_name: one of FORMATS; None recognises it by the first line.

    Raises:
        InputError: unreadable file or bad content; names file, line, field, value and the allowed
            values.
    """
    path = Path(path)
    if format_name is not None and format_name not in FORMATS:
        raise InputError(f"trace format {format_name!r}: allowed are {', '.join(FORMATS)}")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read trace {path}: {error.strerror}") from error
    lines = _lines(raw, path)
    if not lines:
        raise InputError(f"{path}: the trace is empty; it needs at least one request")
    name = format_name or _recognise(lines[0][1], path)
    shape = FORMATS[name]
    rows = _table_rows(lines, shape, path) if shape.table else _json_rows(lines, path)
    requests = list(_requests(rows, shape, path))
    if not requests:
        raise InputError(f"{path}: no request after the header line; at least one is needed")
    return Trace(path.name, hashlib.sha256(raw).hexdigest(), requests)


def _lines(raw: bytes, path: Path) -> list[tuple[int, str]]:
    """Numbered lines that are not blank."""
    if raw.startswith(_GZIP_MAGIC):
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: damaged gzip file: {error}") from error
    elif path.suffix == ".gz" and raw:
        raise InputError(f"{path}: not a gzip file although its name ends in .gz")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8 text: {error.reason}") from error
    return [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]


def _recognise(first: str, path: Path) -> str:
    names: set[str] = set()
    if first.lstrip().startswith("{"):
        row = _json_object(first, f"{path}, line 1")
        names = set(row)
    else:
        names = set(_cells(first, f"{path}, line 1"))
    for name, shape in FORMATS.items():
        if {shape.arrival, shape.inputs, shape.outputs} <= names:
            return name
    known = "; ".join(f"{n}: {f.arrival}, {f.inputs}, {f.outputs}" for n, f in FORMATS.items())
    raise InputError(f"{path}, line 1: {first[:60]!r} is no known trace format; fields are {known}")


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            row = json.loads(line)  # takes NaN and Infinity, so that the field check can name them
        except (ValueError, RecursionError):
            raise InputError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: {line[:60]!r} is not a JSON object")
    return row


def _json_rows(lines: list[tuple[int, str]], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in lines:
        yield number, _json_object(line, f"{path}, line {number}")


def _table_rows(
    lines: list[tuple[int, str]], shape: TraceFormat, path: Path
) -> Iterator[tuple[int, dict[str, Any]]]:
    columns = _cells(lines[0][1], f"{path}, line {lines[0][0]}")
    for field in (shape.arrival, shape.inputs, shape.outputs):
        if field not in columns:
            raise InputError(
                f"{path}, line {lines[0][0]}, field {field}: missing from the header line, "
                f"which has {', '.join(columns)[:80]}"
            )
    for number, line in lines[1:]:
        cells = _cells(line, f"{path}, line {number}")
        if len(cells) != len(columns):
            raise InputError(
                f"{path}, line {number}: {len(cells)} columns; the header line has {len(columns)}"
            )
        yield number, dict(zip(columns, cells, strict=True))


def _cells(line: str, where: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line]))]
    except csv.Error as error:
        raise InputError(f"{where}: not a line of CSV: {error}") from error


def _requests(
    rows: Iterator[tuple[int, dict[str, Any]]], shape: TraceFormat, path: Path
) -> Iterator[TraceRequest]:
    first: float | None = None
    previous = -math.inf
    for number, row in rows:
        where = f"{path}, line {number}"
        arrival = _arrival(row, shape, where)
        if arrival < previous:
            raise InputError(
                f"{where}, field {shape.arrival}: {row[shape.arrival]!r} is before the line above; "
                "a trace is sorted by arrival"
            )
        previous = arrival
        if first is None:
            # Dates are counted from the first request; numbers stay as they are.
            first = arrival if shape.seconds is _date_time else 0.0
        inputs = _tokens(row, shape.inputs, where)
        yield TraceRequest(
            arrival - first,
            inputs,
            _tokens(row, shape.outputs, where),
            _hash_ids(row, inputs, where) if not shape.table else (),
        )


def _arrival(row: dict[str, Any], shape: TraceFormat, where: str) -> float:
    value = _field(row, shape.arrival, where)
    try:
        seconds = shape.seconds(value)
    except (ValueError, TypeError, OverflowError):
        seconds = math.nan
    if not 0.0 <= seconds <= MAX_TIME_S:
        raise InputError(
            f"{where}, field {shape.arrival}: {value!r} is not allowed; it must be "
            f"{shape.arrival_form}"
        )
    return seconds


def _tokens(row: dict[str, Any], field: str, where: str) -> int:
    value = _field(row, field, where)
    count = 0
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        count = int(value) if len(value) < 20 else 0
    elif isinstance(value, int) and not isinstance(value, bool):
        count = value
    if not 1 <= count <= MAX_TOKENS:
        raise InputError(
            f"{where}, field {field}: {value!r} is not allowed; it must be a whole number of "
            f"tokens, 1 to {MAX_TOKENS}"
        )
    return count


def _hash_ids(row: dict[str, Any], inputs: int, where: str) -> tuple[int, ...]:
    ids = row.get("hash_ids")
    if ids is None:
        return ()
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < 2**63 for i in ids):
        raise InputError(
            f"{where}, field hash_ids: {str(ids)[:60]!r} is not allowed; it must be a list of "
            "whole numbers, 0 to 2^63 - 1"
        )
    blocks = -(-inputs // BLOCK_TOKENS)
    if len(ids) > blocks:
        raise InputError(
            f"{where}, field hash_ids: {len(ids)} blocks of {BLOCK_TOKENS} tokens are more than a "
            f"prompt of {inputs} tokens has; at most {blocks} are allowed"
        )
    return tuple(ids)


def _field(row: dict[str, Any], field: str, where: str) -> Any:
    value = row.get(field)
    if value is None:
        raise InputError(f"{where}, field {field}: missing; every request needs it")
    return value
