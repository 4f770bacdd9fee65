"""Bounds of a single request and of a tenant, checked before anything is queued."""

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

from kairos.router.config.settings import Limits, Timeouts
from kairos.router.edge.errors import RequestError, invalid
from kairos.router.edge.tenant import Tenant
from kairos.router.request.body_memory import BodyReservation
from kairos.router.request.outcome import Outcome
from kairos.slo import SLO_HEADERS

# Two of these could be read differently by two parsers on the way. aiohttp refuses two Host,
# Content-Length or Transfer-Encoding headers itself, also Content-Length beside
# Transfer-Encoding, line folding, and bare line ends.
_ONCE = ("authorization", "content-type", "traceparent", "x-request-id")
# Header lines that the router or an engine reads.
_READ = frozenset(
    (
        *_ONCE,
        *SLO_HEADERS,
        "content-length",
        "transfer-encoding",
        "content-encoding",
        "expect",
        "host",
        "connection",
        "origin",
    )
)


def check_headers(headers: Iterable[tuple[bytes, bytes]], limits: Limits) -> None:
    """Refuse header lines (aiohttp's `raw_headers`) that are too many, too long or ambiguous.

    Raises:
        RequestError: 400, 415 or 431.
    """
    size = 0
    count = 0
    seen = set()
    for raw_name, value in headers:
        count += 1
        size += len(raw_name) + len(value) + 4
        name = raw_name.decode("latin-1").lower()
        if "_" in name and name.replace("_", "-") in _READ:
            # A parser behind the router could take it for its twin with dashes. Others are ignored.
            twin = name.replace("_", "-")
            raise invalid(400, "header_name", f"header {name}: send it as {twin}")
        if name in _ONCE:
            if name in seen:
                raise invalid(400, "header_repeated", f"header {name}: sent more than once")
            seen.add(name)
        if name == "transfer-encoding" and value.strip().lower() != b"chunked":
            raise invalid(400, "transfer_encoding", "Transfer-Encoding: only chunked is allowed")
        if name == "content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise invalid(415, "content_encoding", "Content-Encoding: bodies must be plain")
    if count > limits.max_headers:
        raise invalid(431, "headers_many", f"more than {limits.max_headers} header lines")
    if size > limits.max_header_kib << 10:
        raise invalid(431, "headers_large", f"header lines beyond {limits.max_header_kib} KiB")


async def read_body(
    request: web.BaseRequest, limits: Limits, timeouts: Timeouts, reservation: BodyReservation
) -> bytes:
    """The body, whole; `reservation` gets the memory that it takes.

    Raises:
        RequestError: 400 when its chunks are malformed, 413 when it is too long, 408 when it comes
            too slowly, and what overload is answered with when the bodies being read take too
            much together.
    """
    if (request.content_length or 0) > limits.max_body_bytes:
        raise _too_long(limits)
    try:
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        if request.content.is_eof() and request.content.total_bytes <= limits.max_body_bytes:
            whole = request.content.read_nowait()
            reservation.grow_to(len(whole))
            return whole
        chunks: list[bytes] = []
        size = 0
        async with asyncio.timeout(timeouts.body_timeout_s):
            # Not request.read(): that answers with aiohttp's own page, after its own limit.
            while chunk := await request.content.readany():
                size += len(chunk)
                if size > limits.max_body_bytes:
                    raise _too_long(limits)
                reservation.grow_to(size)
                chunks.append(chunk)
    except BadHttpMessage:
        raise invalid(400, "http_malformed", "the body is not valid HTTP/1.1") from None
    except TimeoutError:
        raise invalid(
            408, "body_slow", f"the body did not arrive within {timeouts.body_timeout_s:g} s"
        ) from None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_long(limits: Limits) -> RequestError:
    return invalid(413, "body_large", f"a body may have {limits.max_body_mib} MiB at most")


@dataclass(slots=True)
class _Use:
    running: int = 0
    tokens: float = math.inf
    at_s: float = 0.0


class TenantGate:
    """Counts what each tenant has running, and how fast its requests come (a token bucket)."""

    def __init__(self) -> None:
        self._use: dict[str, _Use] = {}

    def enter(self, tenant: Tenant, now_s: float) -> None:
        """Let a request in; `leave` must follow, once.

        Raises:
            RequestError: 429; the tenant's concurrency or rate is used up.
        """
        use = self._use.setdefault(tenant.name, _Use(at_s=now_s))
        if tenant.max_concurrent is not None and use.running >= tenant.max_concurrent:
            raise _too_many(
                "tenant_concurrency", f"{tenant.max_concurrent} requests of this key run", 1.0
            )
        if (rate := tenant.requests_per_s) is not None:
            gained = max(0.0, now_s - use.at_s) * rate
            use.tokens = min(float(tenant.burst), use.tokens + gained)
            use.at_s = now_s
            if use.tokens < 1.0:
                wait_s = (1.0 - use.tokens) / rate
                raise _too_many(
                    "tenant_rate", f"this key allows {rate:g} requests per second", wait_s
                )
            use.tokens -= 1.0
        use.running += 1

    def leave(self, tenant: Tenant) -> None:
        """A request that was let in has ended."""
        self._use[tenant.name].running -= 1

    def running(self, tenant: Tenant) -> int:
        """Requests of a tenant that were let in and have not ended."""
        use = self._use.get(tenant.name)
        return use.running if use else 0

    def keep(self, tenants: Iterable[Tenant]) -> None:
        """Forget idle tenants that are not among `tenants`, after a reload."""
        names = {tenant.name for tenant in tenants}
        self._use = {n: use for n, use in self._use.items() if n in names or use.running}


def _too_many(reason: str, message: str, wait_s: float) -> RequestError:
    return RequestError(429, Outcome.REJECTED_TENANT, reason, message, wait_s)
