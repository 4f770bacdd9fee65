"""What is counted and logged of a request that ended."""

import json
import logging
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kairos.errors import InputError
from kairos.router.observe.access_log import AccessLog, line_of
from kairos.router.observe.access_record import AccessRecord
from kairos.router.observe.metrics import OTHER, Capped, RouterMetrics
from kairos.router.request.outcome import Outcome
from kairos.slo import Slo

SLO = Slo(1000, 50, "fast")
NOW = datetime(2026, 1, 2, 3, 4, 5, 678_000, UTC)


def end(outcome: Outcome = Outcome.COMPLETED, **fields: object) -> AccessRecord:
    given = {
        "status": 200,
        "path": "/generate",
        "request_id": "r",
        "duration_s": 2.0,
        "stream": True,
    }
    return AccessRecord(outcome=outcome, **{**given, **fields})


def value(metrics: RouterMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"kairos_router_{name}", labels)


@pytest.mark.parametrize(
    ("outcome", "ttft_s", "tpot_s", "met"),
    [
        (Outcome.COMPLETED, 0.9, 0.04, (True, True)),
        (Outcome.COMPLETED, 1.1, 0.04, (False, True)),
        (Outcome.COMPLETED, 0.9, 0.06, (True, False)),
        (Outcome.COMPLETED, 0.9, None, (True, True)),
        (Outcome.ENGINE_FAILED, 0.9, None, (True, False)),
        (Outcome.EXPIRED, None, None, (False, False)),
        (Outcome.REJECTED_INFEASIBLE, None, None, (False, False)),
        (Outcome.REJECTED_FULL, None, None, (False, False)),
        (Outcome.UNAVAILABLE, None, None, (False, False)),
        (Outcome.SHUT_DOWN, None, None, (False, False)),
        (Outcome.CLIENT_GONE, 0.9, None, (None, None)),
        (Outcome.INVALID, None, None, (None, None)),
        (Outcome.REJECTED_TENANT, None, None, (None, None)),
        (Outcome.ENGINE_REFUSED, None, None, (None, None)),
    ],
)
def test_attainment_counts_requests_that_the_service_had_to_answer(
    outcome, ttft_s, tpot_s, met
) -> None:
    ended = end(outcome, slo=SLO, ttft_s=ttft_s, tpot_s=tpot_s)
    assert (ended.ttft_met, ended.tpot_met) == met
    metrics = RouterMetrics()
    metrics.ended(ended)
    for objective, expected in (("ttft", met[0]), ("tpot", met[1]), ("both", met[0] and met[1])):
        labels = {"slo_class": "fast", "objective": objective}
        counted = (
            value(metrics, "slo_met_total", **labels),
            value(metrics, "slo_missed_total", **labels),
        )
        assert counted == {None: (None, None), True: (1, None), False: (None, 1)}[expected]


@given(st.lists(st.sampled_from(list(Outcome)), max_size=30))
def test_every_request_counts_once(outcomes: list[Outcome]) -> None:
    metrics = RouterMetrics()
    for outcome in outcomes:
        metrics.ended(end(outcome, tenant="a", slo=SLO))
    for outcome in Outcome:
        labels = {"tenant": "a", "slo_class": "fast", "outcome": outcome.value}
        assert (value(metrics, "requests_total", **labels) or 0) == outcomes.count(outcome)


def test_labels_are_capped_and_printable() -> None:
    capped = Capped(2)
    assert [capped(name) for name in ("a", "b", "c", "a", "d")] == ["a", "b", OTHER, "a", OTHER]
    capped.forget("a")
    assert capped("d") == "d"
    metrics = RouterMetrics()
    for i in range(1000):
        metrics.ended(end(model=f"m{i}", tenant=f"t{i}", reason=f"r{i}", output_tokens=1))
    metrics.ended(end(model="\ud800\n", tenant="x" * 10_000, output_tokens=1))
    assert len(metrics.exposition()) < 400_000


def test_gauges_of_a_removed_server_go() -> None:
    metrics = RouterMetrics()
    metrics.breaker.labels("prefill", "h:1").set(2)
    metrics.forget_worker("prefill", "h:1")
    metrics.forget_worker("prefill", "never:1")
    assert value(metrics, "breaker_state", role="prefill", worker="h:1") is None


def test_names_follow_the_conventions() -> None:
    metrics = RouterMetrics()
    for family in metrics.registry.collect():
        assert family.name.startswith("kairos_router_")
        assert family.documentation.endswith(".")
        assert "rid" not in family.name


def test_a_line_holds_what_happened_in_milliseconds() -> None:
    ended = end(slo=SLO, ttft_s=0.5, tpot_s=0.02, queue_s=0.1, tenant="a", prefill="p:1")
    assert json.loads(line_of(ended, NOW)) == {
        "time": "2026-01-02T03:04:05.678+00:00",
        "outcome": "completed",
        "status": 200,
        "method": "POST",
        "path": "/generate",
        "request_id": "r",
        "tenant": "a",
        "slo_class": "fast",
        "ttft_slo_ms": 1000,
        "tpot_slo_ms": 50,
        "best_effort": False,
        "stream": True,
        "sequences": 1,
        "body_bytes": 0,
        "queue_ms": 100.0,
        "ttft_ms": 500.0,
        "tpot_ms": 20.0,
        "duration_ms": 2000.0,
        "attempts": 0,
        "prefill": "p:1",
    }


def test_a_request_without_objectives_counts_in_no_attainment() -> None:
    metrics = RouterMetrics()
    ended = end(slo=Slo(), ttft_s=9.0, tpot_s=9.0)
    metrics.ended(ended)
    half = end(slo=Slo(ttft_ms=100), ttft_s=0.01, tpot_s=9.0)
    metrics.ended(half)
    assert (ended.ttft_met, ended.tpot_met) == (None, None)
    assert (half.ttft_met, half.tpot_met) == (True, None)
    for objective, met in (("ttft", 1.0), ("tpot", None), ("both", 1.0)):
        found = value(metrics, "slo_met_total", slo_class="default", objective=objective)
        assert found == met, objective
        assert value(metrics, "slo_missed_total", slo_class="default", objective=objective) is None
    line = json.loads(line_of(ended, NOW))
    assert line["slo_class"] == "default"
    assert "ttft_slo_ms" not in line


@given(st.text(st.characters(), max_size=1000))
def test_whatever_a_client_writes_a_request_is_one_short_line(text: str) -> None:
    line = line_of(end(path=text, model=text, reason=text, peer=text), NOW).decode()
    assert line.splitlines() == [line.removesuffix("\n")]
    assert len(line) < 10_000
    json.loads(line)


def test_the_log_is_written_rotated_and_complete(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(str(path))
    for i in range(1500):
        log.write(end(request_id=str(i)))
    while not path.exists() or path.read_bytes().count(b"\n") < 1500:
        time.sleep(0.001)
    path.rename(tmp_path / "access.log.1")
    log.reopen()
    log.write(end(request_id="after"))
    log.close()
    assert [json.loads(line)["request_id"] for line in path.read_text().splitlines()] == ["after"]
    lines = (tmp_path / "access.log.1").read_text().splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == [str(i) for i in range(1500)]


def test_a_disk_that_blocks_delays_no_request(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("kairos.router.observe.access_log._MAX_LINES", 10)
    dropped = []
    log = AccessLog(str(tmp_path / "log"), dropped.append)
    free = threading.Event()
    written = log._file.write

    class Blocked:
        def write(self, data: bytes) -> int:
            free.wait()
            return written(data)

        def close(self) -> None:
            pass

    log._file = Blocked()
    for i in range(1000):
        log.write(end(request_id=str(i)))
    assert sum(dropped) >= 900
    free.set()
    log.close()
    assert (tmp_path / "log").read_bytes().count(b"\n") + sum(dropped) == 1000


def test_a_full_disk_is_counted_and_said(tmp_path: Path, caplog) -> None:
    dropped = []
    with caplog.at_level(logging.ERROR):
        log = AccessLog("/dev/full", dropped.append)
        log.write(end())
        log.close()
    assert dropped == [1]
    assert "access log: 1 lines lost" in caplog.text


def test_off_and_unwritable(tmp_path: Path) -> None:
    log = AccessLog("off")
    log.write(end())
    log.close()
    with pytest.raises(InputError, match="--access-log: cannot write to"):
        AccessLog(str(tmp_path / "no" / "log"))


def test_standard_output(capfd) -> None:
    log = AccessLog("-")
    log.write(end())
    log.close()
    assert json.loads(capfd.readouterr().out)["outcome"] == "completed"


def test_predictions_are_compared_where_a_first_token_was_seen() -> None:
    metrics = RouterMetrics()
    for fields in (
        {"stream": True, "predicted_ttft_s": 1.0},
        {"stream": True, "predicted_ttft_s": float("nan")},
        {"stream": False, "predicted_ttft_s": 1.0},
    ):
        metrics.ended(end(ttft_s=0.5, **fields))
    assert value(metrics, "predicted_over_actual_ratio_sum", stage="ttft") == 2.0
