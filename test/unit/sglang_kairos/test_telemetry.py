"""Messages of a scheduler to routers. The scheduler is a stand-in; sockets are real."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import zmq
from sglang.srt.kairos import config, telemetry
from sglang.srt.kairos.config import KairosConfig
from sglang.srt.kairos.state import KairosState
from sglang.srt.kairos.telemetry import TelemetryPublisher, publisher_for, telemetry_report

from kairos.errors import InputError
from kairos.slo import Slo, SloClasses
from kairos.telemetry import MAX_BYTES, TelemetryReport, decoder, encoder
from support.fake_req import FakeReq, fake_req
from support.fake_scheduler import FakeLoad, FakeScheduler

CONFIG = KairosConfig(SloClasses(Slo(2000, 50)), "tiny-fast", ("--kairos",))


def request(number: int, total: int, done: int = 0, matched: int = 0) -> FakeReq:
    req = fake_req(number, total)
    req.extend_end, req.num_matched_prefix_tokens = done, matched
    return req


def scheduler(role: str = "null") -> FakeScheduler:
    made = FakeScheduler(role)
    made.load_inquirer.load = FakeLoad(3, 2, 64, np.int64(5_000), 9_000)
    made.kairos = KairosState(CONFIG, made)
    return made


@pytest.fixture
def publisher() -> Iterator[TelemetryPublisher]:
    made = TelemetryPublisher("tcp://127.0.0.1:0")
    yield made
    made.close()


def heard(endpoint: str, publish: Callable[[], object]) -> list[TelemetryReport]:
    """The messages that a subscriber receives while `publish` is called again and again."""
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


def test_a_subscriber_receives_one_report_after_the_other(publisher: TelemetryPublisher) -> None:
    assert not publisher.endpoint.endswith(":0")
    made = scheduler()
    first, *others = heard(publisher.endpoint, lambda: publisher.tick(made))
    assert (first.role, first.running, first.waiting, first.kv_used_tokens) == ("null", 3, 2, 5_000)
    assert {report.epoch for report in others} == {first.epoch}
    assert others[0].sequence > first.sequence


def test_reports_keep_their_distance_without_a_subscriber(
    publisher: TelemetryPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(telemetry, "time", SimpleNamespace(monotonic=lambda: now))
    made = scheduler()
    sent = 0
    for _ in range(1_000):
        sent += publisher.tick(made)
        now += 0.001
    assert 19 <= sent <= 21


def test_a_subscriber_that_does_not_read_delays_nothing(
    publisher: TelemetryPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(telemetry, "time", SimpleNamespace(monotonic=lambda: now))
    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, 1)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.connect(publisher.endpoint)
    made = scheduler()
    try:
        for _ in range(20_000):
            now += 1.0
            assert publisher.tick(made)
    finally:
        socket.close(linger=0)
        context.term()


def test_a_prefill_server_reports_the_work_left() -> None:
    made = scheduler("prefill")
    planner = made.kairos.planner
    assert planner is not None
    made.kairos.clock.learn("prefill", (0.0, 0.0, 1e-3, 0.0, 2.0))  # 1 ms per token, times 2
    planner.preempted.replace([request(1, 3_000, 1_000)])
    made.chunked_req = request(2, 10_000, 8_000)
    made.waiting_queue = [request(3, 500, 0, 100), request(4, 64, 0, 64), request(5, 100)]
    made.disagg_prefill_bootstrap_queue.queue = [request(6, 1_000)]
    report = telemetry_report(made, "e", 1)
    assert report.uncached_tokens == 2_000 + 2_000 + 400 + 1 + 100 + 1_000
    assert report.backlog_s == pytest.approx(2.0 * 5.501)
    assert report.calibration == 2.0


def test_a_decode_server_reports_skipped_requests_and_the_least_slack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = scheduler("decode")
    decode = made.kairos.decode
    assert decode is not None
    monkeypatch.setattr(made.kairos.clock, "now", lambda: 10.0)
    made.kairos.clock.learn("decode_steps", SimpleNamespace(factor=1.1))
    decode.batcher.rows.sync([request(n, 90) for n in (1, 2, 3)], np.array([100, 200, 300]), 10.0)
    rows = decode.batcher.rows.rows
    rows["runs"] = [True, False, False]
    rows["first_token_s"] = [9.0, 10.0, 10.0]
    rows["tpot_s"] = 0.05
    rows["output_tokens"] = [10, 10, 19]
    report = telemetry_report(made, "e", 1)
    assert (report.skipped, report.skipped_kv_tokens, report.calibration) == (2, 500, 1.1)
    assert report.slack_s == pytest.approx(9.0 + 0.05 * 11 - 10.0)
    decode.batcher.rows.clear()
    empty = telemetry_report(made, "e", 2)
    assert (empty.skipped, empty.slack_s) == (0, None)


@pytest.mark.parametrize(
    "endpoint", ["ipc:///tmp/x", "tcp://127.0.0.1", "tcp://a b:1", "tcp://h:70000"]
)
def test_a_malformed_address_is_refused(endpoint: str) -> None:
    with pytest.raises(InputError, match="--kairos-telemetry"):
        TelemetryPublisher(endpoint)


def test_an_address_in_use_is_refused(publisher: TelemetryPublisher) -> None:
    with pytest.raises(InputError, match="cannot listen"):
        TelemetryPublisher(publisher.endpoint)


def test_a_report_is_small() -> None:
    assert len(encoder.encode(telemetry_report(scheduler(), "e" * 16, 2**60))) < MAX_BYTES / 4


def test_the_flag_is_checked_and_reaches_child_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(config.ENV, "--kairos-telemetry tcp://127.0.0.1:0")
    parsed = config.config_from_env()
    assert parsed is not None
    assert parsed.telemetry == "tcp://127.0.0.1:0"
    assert parsed.flags[-2:] == ("--kairos-telemetry", "tcp://127.0.0.1:0")
    monkeypatch.setenv(config.ENV, "1")
    without = config.config_from_env()
    assert without is not None
    assert without.telemetry is None
    monkeypatch.setenv(config.ENV, "--kairos-telemetry 127.0.0.1:0")
    with pytest.raises(InputError, match="--kairos-telemetry"):
        config.config_from_env()


def test_nothing_is_published_without_an_address() -> None:
    assert publisher_for(None) is None
