"""Bounds of a request and of a tenant."""

import asyncio
from unittest.mock import Mock

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.streams import StreamReader
from hypothesis import given
from hypothesis import strategies as st

from kairos.router.config.settings import Limits, Timeouts
from kairos.router.edge.errors import RequestError
from kairos.router.edge.limits import TenantGate, check_headers, read_body
from kairos.router.edge.tenant import Tenant
from kairos.router.request.body_memory import BodyMemory, BodyReservation
from kairos.router.request.outcome import Outcome
from kairos.slo import Slo, SloClasses

CLASSES = SloClasses(Slo(2000, 50))


def tenant(name: str = "a", **settings: object) -> Tenant:
    return Tenant(name, CLASSES, **settings)


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ([(b"X", b"1")] * 101, 431, "headers_many"),
        ([(b"X", b"1" * 16_384)], 431, "headers_large"),
        ([(b"X%d" % i, b"1" * 8000) for i in range(3)], 431, "headers_large"),
        ([(b"Content_Length", b"3")], 400, "header_name"),
        ([(b"Authorization", b"Bearer a"), (b"authorization", b"b")], 400, "header_repeated"),
        ([(b"traceparent", b"a"), (b"Traceparent", b"b")], 400, "header_repeated"),
        ([(b"Transfer-Encoding", b"gzip, chunked")], 400, "transfer_encoding"),
        ([(b"Content-Encoding", b"gzip")], 415, "content_encoding"),
    ],
)
def test_headers_that_are_refused(headers: list, status: int, reason: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_headers(headers, Limits())
    refused = caught.value
    assert (refused.status, refused.reason, refused.outcome) == (status, reason, Outcome.INVALID)


def test_headers_that_pass() -> None:
    ordinary = [
        (b"Host", b"a"), (b"Transfer-Encoding", b" Chunked"), (b"Content-Encoding", b"identity"),
        (b"Accept", b"a"), (b"Accept", b"b"), (b"X-Weird", b"\xff"),
    ]  # fmt: skip
    check_headers(ordinary + [(b"X", b"1")] * 94, Limits())


FREE = BodyMemory(1 << 30, 429)
LIMITS, TIMEOUTS = Limits(), Timeouts()


async def body_of(
    request: "FakeRequest",
    limits: Limits = LIMITS,
    timeouts: Timeouts = TIMEOUTS,
    bodies: BodyMemory = FREE,
    tenant: str = "a",
) -> bytes:
    with bodies.hold(tenant) as held:
        return await read_body(request, limits, timeouts, held)


class FakeRequest:
    def __init__(self, chunks: list[bytes], length: int | None = None, late: bool = False) -> None:
        self.content_length = length
        self.headers: dict[str, str] = {}
        self.content = self
        self.left = list(chunks)
        self.late = late

    def is_eof(self) -> bool:
        return False

    async def readany(self) -> bytes:
        await asyncio.sleep(0)
        if not self.left and self.late:
            await asyncio.Event().wait()
        return self.left.pop(0) if self.left else b""


async def test_a_body_is_read_whole_or_refused() -> None:
    limits, timeouts = Limits(max_body_mib=1), Timeouts(body_timeout_s=0.01)
    mib = b"x" * (1 << 20)
    assert await body_of(FakeRequest([b"ab", b"c"]), limits) == b"abc"
    assert await body_of(FakeRequest([]), limits) == b""
    assert await body_of(FakeRequest([mib]), limits) == mib
    for request in (FakeRequest([mib, b"x"]), FakeRequest([], length=len(mib) + 1)):
        with pytest.raises(RequestError) as caught:
            await body_of(request, limits)
        assert (caught.value.status, caught.value.reason) == (413, "body_large")
    with pytest.raises(RequestError) as caught:
        await body_of(FakeRequest([b"a"], late=True), limits, timeouts)
    assert (caught.value.status, caught.value.reason) == (408, "body_slow")


@pytest.mark.parametrize("size", [0, 3, 1 << 20, (1 << 20) + 1])
async def test_a_body_that_has_arrived_is_bounded_and_charged(size: int) -> None:
    request = FakeRequest([])
    request.content = StreamReader(Mock(spec=BaseProtocol), 1 << 30)
    request.content.feed_data(b"x" * size)
    request.content.feed_eof()
    memory = BodyMemory(1 << 30, 429)
    with memory.hold("a") as held:
        if size > 1 << 20:
            with pytest.raises(RequestError, match="1 MiB"):
                await read_body(request, Limits(max_body_mib=1), TIMEOUTS, held)
        else:
            assert await read_body(request, Limits(max_body_mib=1), TIMEOUTS, held) == b"x" * size
            assert memory.held == size


def test_concurrency_is_per_tenant_and_comes_back() -> None:
    gate = TenantGate()
    one, other = tenant(max_concurrent=2), tenant("b", max_concurrent=1)
    gate.enter(one, 0)
    gate.enter(one, 0)
    with pytest.raises(RequestError) as caught:
        gate.enter(one, 0)
    assert (caught.value.status, caught.value.outcome) == (429, Outcome.REJECTED_TENANT)
    assert caught.value.retry_after_s == 1.0
    gate.enter(other, 0)
    gate.leave(one)
    gate.enter(one, 0)
    assert (gate.running(one), gate.running(other), gate.running(tenant("c"))) == (2, 1, 0)


def test_rate_allows_a_burst_then_the_rate() -> None:
    gate = TenantGate()
    limited = tenant(requests_per_s=2, burst=3)
    for _ in range(3):
        gate.enter(limited, 100.0)
    with pytest.raises(RequestError) as caught:
        gate.enter(limited, 100.0)
    assert caught.value.retry_after_s == 0.5
    gate.enter(limited, 100.5)
    with pytest.raises(RequestError):
        gate.enter(limited, 100.75)
    gate.enter(limited, 101.0)


def test_a_reload_forgets_idle_tenants_only() -> None:
    gate = TenantGate()
    busy, idle, kept = tenant("busy"), tenant("idle"), tenant("kept", requests_per_s=1, burst=1)
    for each in (busy, idle, kept):
        gate.enter(each, 0)
    gate.leave(idle)
    gate.leave(kept)
    gate.keep([kept])
    gate.leave(busy)
    assert gate.running(busy) == 0
    with pytest.raises(RequestError):  # its bucket is still empty
        gate.enter(kept, 0)


@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=200), st.integers(1, 5))
def test_no_more_than_burst_plus_rate_times_time(gaps: list[float], burst: int) -> None:
    gate = TenantGate()
    limited = tenant(requests_per_s=3, burst=burst)
    now = 0.0
    entered = 0
    for gap in gaps:
        now += gap
        try:
            gate.enter(limited, now)
        except RequestError:
            continue
        entered += 1
    assert entered <= burst + 3 * (now - gaps[0]) + 1e-6
    assert entered >= 1


@pytest.mark.parametrize("declared", [True, False])
async def test_bodies_that_are_read_at_once_are_bounded_together(declared: bool) -> None:
    bodies = BodyMemory(10, 503)
    slow = FakeRequest([b"x" * 7], 9 if declared else None, late=True)
    reading = asyncio.ensure_future(body_of(slow, bodies=bodies))
    while not bodies.held:
        await asyncio.sleep(0)
    other = FakeRequest([b"x" * 2, b"x" * 2], 4 if declared else None)
    with pytest.raises(RequestError) as caught:
        await body_of(other, bodies=bodies, tenant="b")
    refused = caught.value
    assert (refused.status, refused.outcome) == (503, Outcome.REJECTED_FULL)
    assert (refused.reason, refused.retry_after_s) == ("reading_bytes", 1.0)
    assert not other.left
    assert bodies.held == 7
    assert await body_of(FakeRequest([b"abc"]), bodies=bodies, tenant="b") == b"abc"
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert bodies.held == 0


class Watched(BodyMemory):
    """Remembers the most that was held."""

    most = 0

    def take(self, body: BodyReservation, size: int) -> None:
        super().take(body, size)
        self.most = max(self.most, self.held)


@given(
    st.lists(
        st.tuples(
            st.lists(st.binary(min_size=1, max_size=9), max_size=5),
            st.sampled_from(["declared", "chunked", "late", "gone"]),
        ),
        max_size=12,
    ),
    st.integers(1, 60),
)
def test_bodies_in_reading_never_pass_the_bound_and_leave_nothing(
    asked: list[tuple[list[bytes], str]], limit: int
) -> None:
    bodies = Watched(limit, 429)

    async def read_all() -> list[object]:
        reads = []
        for chunks, how in asked:
            length = sum(map(len, chunks)) if how == "declared" else None
            request = FakeRequest(chunks, length, how in ("late", "gone"))
            timeouts = Timeouts(body_timeout_s=0.01 if how == "late" else 60.0)
            reads.append(asyncio.ensure_future(body_of(request, timeouts=timeouts, bodies=bodies)))
        for _ in range(3):
            await asyncio.sleep(0)
        for (_, how), read in zip(asked, reads, strict=True):
            if how == "gone":
                read.cancel()
        return await asyncio.gather(*reads, return_exceptions=True)

    ends = asyncio.run(read_all())
    assert bodies.most <= limit
    assert bodies.held == 0
    total = sum(len(chunk) for chunks, _ in asked for chunk in chunks)
    for (chunks, how), end in zip(asked, ends, strict=True):
        if isinstance(end, RequestError) and end.reason == "reading_bytes":
            assert total > limit
        elif isinstance(end, RequestError) and end.reason == "tenant":
            assert total > limit / 2
        elif how in ("declared", "chunked"):
            assert end == b"".join(chunks)
        elif how == "late":
            assert isinstance(end, RequestError)
            assert end.reason == "body_slow"


async def test_what_is_only_declared_takes_nothing_and_a_tenant_leaves_room_for_others() -> None:
    bodies = BodyMemory(100, 429)
    silent = [FakeRequest([], length=90, late=True) for _ in range(20)]
    held = [FakeRequest([b"x" * 20], late=True) for _ in range(5)]
    reads = [asyncio.ensure_future(body_of(one, bodies=bodies)) for one in (*silent, *held)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert bodies.held == 80
    with pytest.raises(RequestError) as caught:
        await reads[-1]
    refused = caught.value
    assert (refused.outcome, refused.reason) == (Outcome.REJECTED_TENANT, "tenant")
    assert await body_of(FakeRequest([b"x" * 20]), bodies=bodies, tenant="b") == b"x" * 20
    for read in reads:
        read.cancel()
    await asyncio.gather(*reads, return_exceptions=True)
    assert bodies.held == 0
    assert await body_of(FakeRequest([b"x" * 100]), bodies=bodies) == b"x" * 100
