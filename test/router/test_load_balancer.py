"""Three router processes behind real HAProxy with deploy/haproxy/haproxy.cfg."""

import http.client
import json
import shutil
import ssl
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trustme

from kairos.cluster.ports import PortReservation
from support.load_balancer import LoadBalancer, under_load
from support.router_process import Engine, RouterProcess

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="no haproxy on this machine"),
]
EVENTS = 12
PACE_S = 0.05
CLIENTS = 12
COMPLETION = {"model": "tiny", "prompt": "hello", "max_tokens": 2}


class Site:
    """Engines, three routers, and HAProxy.

    Attributes:
        routers: by their number in HAProxy, from 1.
    """

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.folder = folder
        self.engines = [stack.enter_context(Engine(PACE_S, EVENTS)) for _ in range(4)]
        for engine in self.engines:
            stack.callback(engine.shutdown)
        self._ports = PortReservation()
        stack.callback(self._ports.close)
        self._flags = [
            *(word for e in self.engines[:2] for word in ("--prefill", e.url, "8998")),
            *(word for e in self.engines[2:] for word in ("--decode", e.url)),
            *("--drain-delay-s", "3"),
        ]
        self._stack = stack
        self.routers: dict[int, RouterProcess] = {}
        for number in (1, 2, 3):
            self.start(number, self._ports.take())
        self.balancer = stack.enter_context(self.balanced(folder))
        self.balancer.wait_for("UP", 1, 2, 3)

    def start(self, number: int, port: int) -> RouterProcess:
        """Start a router, at its start or again."""
        log = self.folder / f"router-{number}-{time.monotonic_ns()}.log"
        router = self.routers[number] = RouterProcess(self._flags, port, log)
        self._stack.callback(router.process.wait)
        self._stack.callback(router.process.kill)
        return router

    def outcomes(self) -> list[str]:
        """How requests ended, by the logs of the routers that run."""
        return [line["outcome"] for router in self.routers.values() for line in router.lines()]

    @contextmanager
    def balanced(self, folder: Path, pem: Path | None = None) -> Iterator[LoadBalancer]:
        """Another HAProxy in front of the routers."""
        at = [router.port for router in self.routers.values()]
        balancer = LoadBalancer(self._ports.take(), at, folder, pem)
        try:
            yield balancer
        finally:
            balancer.process.kill()
            balancer.process.wait()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with ExitStack() as stack:
        yield Site(stack, tmp_path_factory.mktemp("balanced"))


def wait_for(condition, limit_s: float = 10.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_rolling_restart_loses_no_request(site: Site) -> None:
    begun_s = time.monotonic()
    with under_load(site.balancer.port, CLIENTS, EVENTS) as load:
        for number in (1, 2, 3):
            old = site.routers[number]
            before = load.complete
            assert old.stop() == 0
            assert load.complete > before
            site.start(number, old.port)
            site.balancer.wait_for("UP", number)
    took_s = time.monotonic() - begun_s
    print(f"{load.complete} complete, {len(load.lost)} lost, {took_s:.1f} s")
    assert load.lost == []


def test_killed_router_loses_only_what_it_had_begun(site: Site) -> None:
    killed = site.routers[2]
    with under_load(site.balancer.port, CLIENTS, EVENTS) as load:
        wait_for(lambda: load.complete > CLIENTS)
        killed.process.kill()
        killed.process.wait()
        killed_s = time.monotonic()
        site.balancer.wait_for("DOWN", 2)
        down_s = time.monotonic() - killed_s
        served = load.complete
        wait_for(lambda: load.complete > served + 2 * CLIENTS)
        site.start(2, killed.port)
        site.balancer.wait_for("UP", 2)
    print(
        f"{load.complete} complete, {len(load.lost)} lost, down after {down_s:.2f} s, "
        f"slowest {load.slowest_s:.2f} s: {[lost.problem[:60] for lost in load.lost]}"
    )
    assert [lost for lost in load.lost if lost.sent_s > killed_s] == []
    assert len(load.lost) < CLIENTS  # leastconn had given it a third of them


def test_events_pass_as_they_come(site: Site) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", site.balancer.port, timeout=30)
    connection.request("POST", "/v1/completions", json.dumps({**COMPLETION, "stream": True}))
    answer = connection.getresponse()
    assert answer.readline().startswith(b"data: {")
    first_s = time.monotonic()
    assert answer.read().endswith(b"data: [DONE]\n\n")
    assert time.monotonic() - first_s > PACE_S * EVENTS / 2
    connection.close()


def test_client_that_leaves_ends_its_request_in_the_router(site: Site) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", site.balancer.port, timeout=30)
    before = site.outcomes().count("client_gone")
    for engine in site.engines:
        engine.pace_s = 5.0
    try:
        connection.request("POST", "/v1/completions", json.dumps(COMPLETION))
        time.sleep(0.5)
        connection.close()
        wait_for(lambda: site.outcomes().count("client_gone") == before + 1, limit_s=3.0)
    finally:
        for engine in site.engines:
            engine.pace_s = PACE_S


def test_endpoints_of_one_router_are_not_reached(site: Site) -> None:
    asked = site.routers[1].get
    for path in ("/metrics", "/workers", "/%77orkers", "/workers/127.0.0.1:1/drain"):
        assert asked(path, url=site.balancer.url)[0] == 404
    assert asked("/metrics")[0] == 200
    assert asked("/v1/models", url=site.balancer.url)[0] == 200


def test_clients_may_use_tls(site: Site, tmp_path: Path) -> None:
    authority = trustme.CA()
    pem = tmp_path / "kairos.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with site.balanced(tmp_path, pem) as balancer:
        balancer.wait_for("UP", 1, 2, 3)
        url = balancer.url.replace("http:", "https:") + "/v1/completions"
        request = urllib.request.Request(url, json.dumps(COMPLETION).encode())
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            assert json.loads(answer.read())["choices"][0]["finish_reason"] == "length"


def test_without_a_ready_router_the_answer_is_an_error_in_openais_form(tmp_path: Path) -> None:
    ports = PortReservation()
    try:
        port, *routers = (ports.take() for _ in range(4))
        balancer = LoadBalancer(port, routers, tmp_path)
        try:
            balancer.wait_for("DOWN", 1, 2, 3)
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("POST", "/v1/completions", json.dumps(COMPLETION))
            answer = connection.getresponse()
            assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
            assert json.loads(answer.read())["error"]["code"] == "no_router"
            connection.close()
        finally:
            balancer.process.kill()
            balancer.process.wait()
    finally:
        ports.close()
