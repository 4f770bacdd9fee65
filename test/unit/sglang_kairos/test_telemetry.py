"""What a scheduler publishes for routers. The scheduler is a stand-in; sockets are real."""

from types import SimpleNamespace

import numpy as np
import pytest
import zmq
from sglang.srt.kairos.telemetry import TelemetryPublisher, report_of

from kairos.errors import InputError
from kairos.latency import PrefillModel
from kairos.policy.residents import ROW
from kairos.telemetry import TelemetryReport, decoder

LINEAR = PrefillModel(0.0, 0.0, 1e-3, 0.0)


def request(total: int, done: int = 0, matched: int | None = 0) -> SimpleNamespace:
    return SimpleNamespace(
        origin_input_ids=[0] * total,
        output_ids=[],
        extend_end=done,
        num_matched_prefix_tokens=matched,
    )


def scheduler(role: str = "null", **kairos) -> SimpleNamespace:
    load = SimpleNamespace(
        num_running_reqs=3,
        num_waiting_reqs=2,
        max_running_requests=64,
        num_total_tokens=np.int64(5_000),
        max_total_num_tokens=9_000,
    )
    kairos.setdefault("planner", None)
    kairos.setdefault("decode", None)
    return SimpleNamespace(
        load_inquirer=SimpleNamespace(get_loads=lambda: load),
        kairos=SimpleNamespace(role=role, **kairos),
        chunked_prefill_size=8_192,
        chunked_req=None,
        waiting_queue=[],
        disagg_prefill_bootstrap_queue=SimpleNamespace(queue=[]),
    )


@pytest.fixture
def publisher():
    made = TelemetryPublisher("tcp://127.0.0.1:0")
    yield made
    made.close()


def heard(endpoint: str, publish) -> list[TelemetryReport]:
    """What a subscriber receives while `publish` is called again and again."""
    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(endpoint)
    reports = []
    try:
        for _ in range(200):
            publish()
            if socket.poll(50):
                reports.append(decoder.decode(socket.recv()))
            if len(reports) == 3:
                break
    finally:
        socket.close(linger=0)
        context.term()
    return reports


def test_1_a_subscriber_hears_one_report_after_the_other(publisher):
    assert not publisher.endpoint.endswith(":0")
    first, *others = heard(publisher.endpoint, lambda: publisher.tick(scheduler()))
    assert (first.role, first.running, first.waiting, first.kv_used_tokens) == ("null", 3, 2, 5_000)
    assert {report.epoch for report in others} == {first.epoch}
    assert others[0].sequence > first.sequence


def test_2_nobody_listening_costs_nothing_and_reports_are_rare(publisher, monkeypatch):
    from sglang.srt.kairos import telemetry

    now = 100.0
    monkeypatch.setattr(telemetry, "time", SimpleNamespace(monotonic=lambda: now))
    sent = 0
    for _ in range(1_000):
        sent += publisher.tick(scheduler())
        now += 0.001
    assert 19 <= sent <= 21


def test_3_a_subscriber_that_does_not_read_is_not_waited_for(publisher, monkeypatch):
    from sglang.srt.kairos import telemetry

    now = 0.0
    monkeypatch.setattr(telemetry, "time", SimpleNamespace(monotonic=lambda: now))
    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, 1)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(publisher.endpoint)
    try:
        for _ in range(20_000):
            now += 1.0
            assert publisher.tick(scheduler())
    finally:
        socket.close(linger=0)
        context.term()


def test_4_a_prefill_server_tells_what_is_left_to_compute():
    planner = SimpleNamespace(
        preempted=[request(3_000, 1_000)],
        observer=SimpleNamespace(model=lambda: (LINEAR, 2.0)),
    )
    made = scheduler("prefill", planner=planner)
    made.chunked_req = request(10_000, 8_000)
    made.waiting_queue = [request(500, 0, 100), request(64, 0, 64), request(100, 0, None)]
    made.disagg_prefill_bootstrap_queue.queue = [request(1_000)]
    report = report_of(made, "e", 1)
    assert report.uncached_tokens == 2_000 + 2_000 + 400 + 1 + 100 + 1_000
    assert report.backlog_s == pytest.approx(2.0 * 5.501)
    assert report.calibration == 2.0


def test_5_a_decode_server_tells_who_is_parked_and_how_tight_it_is():
    rows = np.zeros(3, ROW)
    rows["context_tokens"] = [100, 200, 300]
    rows["runs"] = [True, False, False]
    rows["first_token_s"] = [9.0, 10.0, 10.0]
    rows["tpot_s"] = 0.05
    rows["output_tokens"] = [10, 10, 19]
    clock = SimpleNamespace(now=lambda: 10.0, learned=lambda *_: SimpleNamespace(factor=1.1))
    batcher = SimpleNamespace(rows=SimpleNamespace(rows=rows))
    made = scheduler("decode", decode=SimpleNamespace(batcher=batcher), clock=clock)
    report = report_of(made, "e", 1)
    assert (report.skipped, report.skipped_kv_tokens, report.calibration) == (2, 500, 1.1)
    assert report.slack_s == pytest.approx(9.0 + 0.05 * 11 - 10.0)
    batcher.rows.rows = rows[:0]
    empty = report_of(made, "e", 2)
    assert (empty.skipped, empty.slack_s) == (0, None)


@pytest.mark.parametrize(
    "endpoint", ["ipc:///tmp/x", "tcp://127.0.0.1", "tcp://a b:1", "tcp://h:70000"]
)
def test_6_an_address_that_is_none_is_refused(endpoint):
    with pytest.raises(InputError, match="--kairos-telemetry"):
        TelemetryPublisher(endpoint)


def test_6_an_address_in_use_is_refused(publisher):
    with pytest.raises(InputError, match="cannot listen"):
        TelemetryPublisher(publisher.endpoint)


def test_7_a_report_is_small():
    from kairos.telemetry import MAX_BYTES, encoder

    assert len(encoder.encode(report_of(scheduler(), "e" * 16, 2**60))) < MAX_BYTES / 4


def test_8_the_flag_is_checked_and_reaches_child_processes(monkeypatch):
    from sglang.srt.kairos import config

    monkeypatch.setenv(config.ENV, "--kairos-telemetry tcp://127.0.0.1:0")
    parsed = config.config_from_env()
    assert parsed.telemetry == "tcp://127.0.0.1:0"
    assert parsed.flags[-2:] == ("--kairos-telemetry", "tcp://127.0.0.1:0")
    monkeypatch.setenv(config.ENV, "1")
    assert config.config_from_env().telemetry is None
    monkeypatch.setenv(config.ENV, "--kairos-telemetry 127.0.0.1:0")
    with pytest.raises(InputError, match="--kairos-telemetry"):
        config.config_from_env()


def test_9_without_an_address_nothing_is_published():
    from sglang.srt.kairos.telemetry import publisher_for

    assert publisher_for(None, scheduler()) is None
    parallel = SimpleNamespace(server_args=SimpleNamespace(dp_size=2))
    with pytest.raises(InputError, match="data parallelism"):
        publisher_for("tcp://127.0.0.1:0", parallel)
