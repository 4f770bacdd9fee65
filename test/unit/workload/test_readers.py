"""Reading traces: every format, and an error that names the place for everything wrong."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kairos.errors import InputError
from kairos.workload.readers import read_trace
from kairos.workload.synthetic import generate, write_trace
from kairos.workload.trace import Trace, TraceRequest

NORMALISED = (
    '{"arrival_s": 0.5, "input_tokens": 600, "output_tokens": 3, "hash_ids": [4, 9]}\n'
    '{"arrival_s": 2, "input_tokens": 1, "output_tokens": 7}\n'
)
MOONCAKE = (
    '{"timestamp": 0, "input_length": 513, "output_length": 4, "hash_ids": [0, 1]}\n'
    '{"timestamp": 27482, "input_length": 512, "output_length": 5, "hash_ids": [0]}\n'
)
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:15:46.6805900,374,44\r\n"
    "2023-11-16 18:16:50.9951690,396,109\r\n"
)
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n"
    "45.5,GPT-4,1087,230,1317,API log\n"
)


def write(folder: Path, text: str | bytes, name: str = "t") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def rows(trace: Trace) -> list[tuple[float, int, int, tuple[int, ...]]]:
    return [
        (pytest.approx(r.arrival_s, abs=1e-6), r.input_tokens, r.output_tokens, r.hash_ids)
        for r in trace.requests
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (NORMALISED, [(0.5, 600, 3, (4, 9)), (2.0, 1, 7, ())]),
        (MOONCAKE, [(0.0, 513, 4, (0, 1)), (27.482, 512, 5, (0,))]),
        (AZURE, [(0.0, 374, 44, ()), (64.314579, 396, 109, ())]),
        (BURSTGPT, [(5.0, 472, 18, ()), (45.5, 1087, 230, ())]),
        ("\n" + NORMALISED.replace("\n", "\n\n"), [(0.5, 600, 3, (4, 9)), (2.0, 1, 7, ())]),
        ("\ufeff" + BURSTGPT, [(5.0, 472, 18, ()), (45.5, 1087, 230, ())]),
    ],
    ids=["normalised", "mooncake", "azure", "burstgpt", "blank lines", "byte order mark"],
)
def test_format_is_recognised_by_content_plain_or_gzipped(
    tmp_path: Path, text: str, expected: list[tuple[float, int, int, tuple[int, ...]]]
) -> None:
    assert rows(read_trace(write(tmp_path, text))) == expected
    packed = write(tmp_path, gzip.compress(text.encode()), "no-suffix")
    assert rows(read_trace(packed)) == expected


def test_azure_time_zones_and_whole_seconds_are_read(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.009930+00:00,2162,5\n"
        "2024-05-10 02:00:01+02:00,1,1\n"
    )
    assert read_trace(write(tmp_path, text)).requests[1].arrival_s == pytest.approx(0.99007)


def test_named_format_overrides_recognition(tmp_path: Path) -> None:
    both = json.dumps(
        {"arrival_s": 1, "input_tokens": 2, "output_tokens": 3}
        | {"timestamp": 4000, "input_length": 5, "output_length": 6}
    )
    path = write(tmp_path, both)
    assert read_trace(path).requests[0] == TraceRequest(1.0, 2, 3)
    assert read_trace(path, "mooncake").requests[0] == TraceRequest(4.0, 5, 6)


LINE = '{"arrival_s": 1, "input_tokens": 5, "output_tokens": 5}\n'


def changed(field: str, value: str) -> str:
    """A good line, then one with `field` replaced by the JSON text `value`."""
    fields = {"arrival_s": "2", "input_tokens": "5", "output_tokens": "5"} | {field: value}
    return LINE + "{" + ", ".join(f'"{k}": {v}' for k, v in fields.items()) + "}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ["empty", "at least one request"]),
        ("\n \n", ["empty"]),
        (changed("arrival_s", "0.5"), ["line 2", "arrival_s", "0.5", "sorted"]),
        (changed("arrival_s", "-1"), ["line 2", "arrival_s", "-1", "0 to"]),
        (changed("arrival_s", "NaN"), ["line 2", "arrival_s", "nan", "finite"]),
        (changed("arrival_s", "Infinity"), ["line 2", "arrival_s", "inf", "finite"]),
        (changed("arrival_s", "1e300"), ["line 2", "arrival_s", "1e+300"]),
        (changed("arrival_s", "true"), ["line 2", "arrival_s", "True"]),
        (changed("arrival_s", '"soon"'), ["line 2", "arrival_s", "'soon'", "seconds"]),
        (changed("arrival_s", "null"), ["line 2", "arrival_s", "missing"]),
        (changed("input_tokens", "0"), ["line 2", "input_tokens", "0", "1 to"]),
        (changed("input_tokens", "-3"), ["line 2", "input_tokens", "-3"]),
        (changed("input_tokens", "2.5"), ["line 2", "input_tokens", "2.5", "whole number"]),
        (changed("input_tokens", "true"), ["line 2", "input_tokens", "True"]),
        (changed("output_tokens", "0"), ["line 2", "output_tokens", "0", "1 to"]),
        (changed("output_tokens", "1e99"), ["line 2", "output_tokens", "1e+99"]),
        (changed("hash_ids", "3"), ["line 2", "hash_ids", "3", "list"]),
        (changed("hash_ids", "[-1]"), ["line 2", "hash_ids", "[-1]"]),
        (changed("hash_ids", "[1, 2]"), ["line 2", "hash_ids", "2 blocks", "at most 1"]),
        (LINE + "{oops\n", ["line 2", "not JSON"]),
        (LINE + "[1]\n", ["line 2", "not a JSON object"]),
        ('{"a": 1}\n', ["line 1", "no known trace format", "arrival_s", "ContextTokens"]),
        ("a,b\n1,2\n", ["line 1", "no known trace format"]),
        (AZURE.replace("374", "0"), ["line 2", "ContextTokens", "'0'"]),
        (AZURE.replace("44", "4_4"), ["line 2", "GeneratedTokens", "'4_4'"]),
        (AZURE.replace("2023-11-16 18:15", "yesterday"), ["line 2", "TIMESTAMP", "yesterday"]),
        (AZURE.replace("18:16:50", "18:14:50"), ["line 3", "TIMESTAMP", "sorted"]),
        (AZURE.replace(",374", ""), ["line 2", "2 columns", "3"]),
        (AZURE.splitlines()[0], ["no request after the header"]),
        (BURSTGPT.replace(",230,", ",0,"), ["line 3", "Response tokens", "'0'"]),
        (BURSTGPT.replace("45.5", "nan"), ["line 3", "Timestamp", "'nan'"]),
        (AZURE.replace("374", "37\r4"), ["line 2", "not a line of CSV"]),
        (b"\x1f\x8b\x08 and no more", ["damaged gzip"]),
        (b'{"arrival_s": 1}\n\xff\xfe', ["line 2", "not UTF-8"]),
    ],
)
def test_errors_name_line_field_value_and_allowed_values(
    tmp_path: Path, text: str | bytes, says: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        read_trace(write(tmp_path, text))
    message = str(caught.value)
    assert str(tmp_path / "t") in message
    assert "\n" not in message
    for part in says:
        assert part in message


def test_unreadable_files_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_trace(tmp_path / "missing")
    with pytest.raises(InputError, match="directory"):
        read_trace(tmp_path)
    with pytest.raises(InputError, match="not a gzip file"):
        read_trace(write(tmp_path, NORMALISED, "t.jsonl.gz"))
    cut = gzip.compress(NORMALISED.encode())[:-9]
    with pytest.raises(InputError, match="damaged gzip"):
        read_trace(write(tmp_path, cut, "cut.jsonl.gz"))
    with pytest.raises(InputError, match="allowed are normalised, mooncake, azure, burstgpt"):
        read_trace(write(tmp_path, NORMALISED), "parquet")
    with pytest.raises(InputError, match="field TIMESTAMP: missing from the header"):
        read_trace(write(tmp_path, BURSTGPT), "azure")


def test_written_trace_is_read_back(tmp_path: Path) -> None:
    trace = generate("mooncake-conversation", 50, seed=3)
    path = tmp_path / "a.jsonl.gz"
    write_trace(trace, path)
    assert list(read_trace(path).requests) == list(trace.requests)
    again = tmp_path / "b.jsonl.gz"
    write_trace(trace, again)
    assert again.read_bytes() == path.read_bytes()


@settings(deadline=None)
@example(b"\r\x00")
@example(b'{"a":' + b"[" * 100_000)
@example(b'{"arrival_s": ' + b"9" * 5000 + b"}")
@given(st.binary(max_size=200))
def test_random_bytes_raise_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz"
    path.write_bytes(data)
    with pytest.raises(InputError):
        read_trace(path)


@given(
    st.lists(
        st.tuples(st.floats(0, 1e6), st.integers(1, 10**6), st.integers(1, 10**5), st.booleans()),
        min_size=1,
        max_size=20,
    )
)
def test_any_valid_trace_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, values: list[tuple[float, int, int, bool]]
) -> None:
    requests = [
        TraceRequest(at, inputs, outputs, (inputs,) if shared else ())
        for at, inputs, outputs, shared in sorted(values)
    ]
    path = tmp_path_factory.getbasetemp() / "valid.gz"
    write_trace(Trace("t", "", requests), path)
    assert list(read_trace(path).requests) == requests
