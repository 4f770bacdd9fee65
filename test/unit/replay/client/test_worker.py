"""The client in a process of its own."""

import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import psutil
import pytest

from kairos.replay.client.job import ClientConfig, WorkerJob
from kairos.replay.client.record import RequestOutcome
from kairos.replay.client.target import UrlTarget
from kairos.replay.client.worker import WorkerDiedError, WorkerProcess, WorkerResult
from kairos.replay.plan.prompts import Prompts
from support.fake_engine import event
from support.replay import planned

pytestmark = pytest.mark.slow


class Silent(BaseHTTPRequestHandler):
    """Streams three tokens; never answers prompts of 99 tokens."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if body.count(b",") > 97:
            time.sleep(60)
        self.send_response(200)
        self.end_headers()
        import json

        for i in range(1, 4):
            self.wfile.write(f"data: {json.dumps(event(i, 3))}\n\n".encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def job(url: str, *lengths: int) -> WorkerJob:
    requests = [planned(i, 0.01 * i, input_tokens=n) for i, n in enumerate(lengths)]
    return WorkerJob(UrlTarget(url), Prompts(1024), ClientConfig(timeout_s=30), "t", requests)


def ended(worker: WorkerProcess) -> WorkerResult:
    while True:
        result = worker.poll(1.0)
        if result is not None:
            return result


def test_records_come_back(url: str) -> None:
    with WorkerProcess(job(url, 10, 10, 10)) as worker:
        assert worker.poll(0.05) is None  # not before it is told to
        worker.start()
        result = ended(worker)
        records = result.records
        assert result.start_s > 0.0
        assert worker.priority in ("real-time", "nice -10", "normal")
    assert [r.outcome for r in records] == [RequestOutcome.OK] * 3


def test_stop_cuts_the_rest(url: str) -> None:
    with WorkerProcess(job(url, 10, 99, 99)) as worker:
        worker.start()
        while worker.counts.sent < 3 or worker.counts.done < 1:
            assert worker.poll(0.1) is None
        worker.stop("decode-0 died")
        records = ended(worker).records
    assert [r.outcome for r in records] == [
        RequestOutcome.OK,
        RequestOutcome.CUT,
        RequestOutcome.CUT,
    ]
    assert records[2].reason == "decode-0 died"


def test_leaving_the_context_ends_the_process(url: str) -> None:
    before = {p.pid for p in psutil.Process().children()}
    with WorkerProcess(job(url, 99)) as worker:
        worker.start()
        worker.poll(0.3)
    after = {p.pid for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE}
    assert after <= before


def test_death_of_the_client_is_an_error(url: str) -> None:
    with WorkerProcess(job(url, 99)) as worker:
        worker.start()
        living = (p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE)
        for process in living:
            if "spawn_main" in " ".join(process.cmdline()):
                process.kill()
        with pytest.raises(WorkerDiedError, match="code -9"):
            ended(worker)


def test_records_larger_than_the_pipe_come_back(url: str) -> None:
    """The records are larger than the pipe, whose end must block while they are sent."""
    requests = [planned(i, 100.0, input_tokens=10) for i in range(5000)]
    work = WorkerJob(UrlTarget(url), Prompts(1024), ClientConfig(budget_s=0.1), "t", requests)
    with WorkerProcess(work) as worker:
        worker.start()
        records = ended(worker).records
    assert len(records) == 5000
    assert {r.outcome for r in records} == {RequestOutcome.CUT}
