"""Record files: header and records, written and read back."""

from pathlib import Path

import msgspec
import pytest

from kairos.errors import InputError
from kairos.replay.client.record import RequestOutcome
from kairos.replay.run.header import RunHeader
from kairos.replay.run.interference import InterferenceReport
from kairos.replay.run.record_file import read_records, write_records
from support.replay import header, record


def test_record_file_round_trip(tmp_path: Path) -> None:
    records = [record(0, [0.4, 0.42]), record(1, [], outcome=RequestOutcome.CONNECTION_ERROR)]
    path = tmp_path / "requests-fcfs.jsonl"
    write_records(path, header(), records)
    assert read_records(path) == (header(), records)
    assert [p.name for p in tmp_path.iterdir()] == ["requests-fcfs.jsonl"]


def test_bad_record_files_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "r"
    head = msgspec.json.encode(header()).decode()
    other = msgspec.json.encode(msgspec.structs.replace(header(), schema=9)).decode()
    good = msgspec.json.encode(record(0, [0.1])).decode()
    for text, says in (
        ("", "empty"),
        ("{}\n", "line 1.*missing required field"),
        (f"{other}\n", "line 1, field schema: 9, allowed is 2"),
        (f"{head}\n{good}\n{{oops\n", "line 3"),
        (f'{head}\n{{"rid": 1}}\n', "line 2"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=says):
            read_records(path)
    with pytest.raises(InputError, match="No such file"):
        read_records(tmp_path / "missing")


def test_header_has_the_facts_to_repeat_a_run() -> None:
    assert {
        "git_commit",
        "interference",
        "warm_up",
        "cache_tokens",
        "seed",
        "trace_sha256",
        "time_scale",
        "slo_set",
        "profile",
        "versions",
        "servers",
    } <= {f.name for f in msgspec.structs.fields(RunHeader)}


def test_key_of_the_interference_report_is_quiet() -> None:
    """Files of earlier versions have this key."""
    fields = msgspec.to_builtins(header(interference=InterferenceReport(problems=("loud",))))
    assert list(fields["quiet"]["problems"]) == ["loud"]
    assert "interference" not in fields
