"""Everything that can be set about the router, grouped by noun.

A value that no operator should change is a constant where it is used.
"""

import ipaddress
import math
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from kairos.errors import InputError
from kairos.router.config.schema import items, printable, within
from kairos.router.queue.params import Binding, DispatchParams
from kairos.router.workers.endpoint import (
    Pattern,
    Role,
    WorkerEndpoint,
    allowed,
    parse_pattern,
    read_endpoint,
)
from kairos.slo import TPOT_RANGE_MS, TTFT_RANGE_MS, Slo, SloClasses, parse_class
from kairos.validation import shown

MIB = 1 << 20
Count = Annotated[int, within(1, 1_000_000)]
Mib = Annotated[int, within(1, 1_000_000, "MiB")]
Seconds = Annotated[float, within(0.01, 86_400.0, "s")]
Interval = Annotated[float, within(0.05, 86_400.0, "s")]
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\[\]:-]{1,253}")


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings that belong together: a section of the configuration file."""


def _origin(value: object, where: str) -> str:
    if isinstance(value, str) and (value == "*" or _ORIGIN.fullmatch(value)):
        return value
    raise InputError(
        f"{where}: {shown(value)} is not allowed; allowed are * and origins like "
        "https://example.com"
    )


class Listen(Group, frozen=True):
    """Where clients reach the router."""

    host: Annotated[str, printable("HOST"), "address to listen on"] = "127.0.0.1"
    port: Annotated[int, within(0, 65535), "port to listen on; 0 takes a free one"] = 30000
    tls_cert: Annotated[Path | None, "certificate chain (PEM); serves HTTPS"] = None
    tls_key: Annotated[Path | None, "private key of --tls-cert (PEM)"] = None
    tls_client_ca: Annotated[Path | None, "CA that client certificates must come from (PEM)"] = None
    cors_origin: Annotated[
        tuple[str, ...],
        items("ORIGIN", _origin),
        "origin whose pages may use the API; * for all; repeatable",
    ] = ()

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("--tls-cert and --tls-key: give both or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise InputError("--tls-client-ca: needs --tls-cert and --tls-key")

    @property
    def loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False


class Limits(Group, frozen=True):
    """Bounds on requests and memory; a request beyond one is answered 413, 429 or 431."""

    max_queued_requests: Annotated[Count, "requests that wait for a pair"] = 4096
    max_queued_sequences: Annotated[Count, "sequences that wait (n, prompt lists)"] = 16_384
    max_queued_mib: Annotated[Mib, "memory of waiting bodies"] = 512
    max_reading_mib: Annotated[Mib, "memory of bodies that are not queued yet"] = 512
    max_body_mib: Annotated[int, within(1, 4096, "MiB"), "size of one body"] = 16
    max_sequences: Annotated[
        int, within(1, 100_000), "sequences of one request (n, prompt lists)"
    ] = 128
    max_headers: Annotated[int, within(8, 1000), "header lines of a request"] = 100
    max_header_kib: Annotated[
        int, within(1, 256, "KiB"), "size of all header lines of a request"
    ] = 16
    max_connections: Annotated[Count, "open client connections"] = 16_384

    def __post_init__(self) -> None:
        if self.max_body_mib > self.max_reading_mib:
            raise InputError("--max-reading-mib: must hold a body of --max-body-mib")

    @property
    def max_queued_bytes(self) -> int:
        return self.max_queued_mib * MIB

    @property
    def max_reading_bytes(self) -> int:
        return self.max_reading_mib * MIB

    @property
    def max_body_bytes(self) -> int:
        return self.max_body_mib * MIB


class Timeouts(Group, frozen=True):
    """The longest waits."""

    header_timeout_s: Annotated[Seconds, "for a client's header lines to arrive"] = 10.0
    body_timeout_s: Annotated[Seconds, "for a client's body to arrive"] = 60.0
    write_timeout_s: Annotated[Seconds, "for a client to go on reading its answer"] = 60.0
    queue_timeout_s: Annotated[Seconds, "for a request to get a pair; then 504"] = 60.0
    request_timeout_s: Annotated[Seconds, "for a request to end, waiting included; then 504"] = (
        3600.0
    )
    first_byte_timeout_s: Annotated[
        Seconds, "for a pair to send its first byte, from dispatch; then 504"
    ] = 300.0
    stream_idle_timeout_s: Annotated[Seconds, "for a pair to send the next byte of a stream"] = (
        120.0
    )
    connect_timeout_s: Annotated[
        float, within(0.01, 60.0, "s"), "for a connection to a server to open"
    ] = 2.0
    drain_delay_s: Annotated[
        float,
        within(0.0, 86_400.0, "s"),
        "from SIGTERM until requests are refused; /ready says 503 meanwhile",
    ] = 0.0
    drain_timeout_s: Annotated[Seconds, "for running requests to end after SIGTERM"] = 60.0


class Overload(Group, frozen=True):
    """The answer to a request that cannot be queued or is predicted to be late."""

    overload_status: Annotated[Literal[429, 503, 529], "status of a refusal under overload"] = 429
    infeasible: Annotated[
        Literal["best_effort", "degrade", "reject"],
        "treatment of a request that is predicted to miss its TTFT objective; reject answers it "
        "at once",
    ] = "best_effort"
    retries: Annotated[int, within(0, 8), "further pairs tried while no byte was sent"] = 1


PrefillServers = Annotated[
    tuple[WorkerEndpoint, ...], items("URL BOOTSTRAP_PORT", partial(read_endpoint, Role.PREFILL))
]
DecodeServers = Annotated[
    tuple[WorkerEndpoint, ...], items("URL", partial(read_endpoint, Role.DECODE))
]


class Workers(Group, frozen=True):
    """The servers, and when one is taken out."""

    prefill: Annotated[PrefillServers, "a prefill server; repeatable"] = ()
    decode: Annotated[DecodeServers, "a decode server; repeatable"] = ()
    workers_file: Annotated[Path | None, "YAML file of servers, read again when it changes"] = None
    prefill_dns: Annotated[
        PrefillServers, "a name whose every address is a prefill server; repeatable"
    ] = ()
    decode_dns: Annotated[
        DecodeServers, "a name whose every address is a decode server; repeatable"
    ] = ()
    dns_interval_s: Annotated[Interval, "between two look-ups of the names"] = 5.0
    allow_worker: Annotated[
        tuple[Pattern, ...],
        items("HOST:PORT", parse_pattern),
        "only addresses where servers may be; parts may be *, and HOST a network like 10.0.0.0/8; "
        "repeatable",
    ] = ()
    health_interval_s: Annotated[Interval, "between two health checks of a server"] = 2.0
    health_timeout_s: Annotated[Interval, "for a health check to be answered"] = 5.0
    breaker_failures: Annotated[
        int, within(1, 1000), "failures in a row that take a server out"
    ] = 3
    breaker_open_s: Annotated[Interval, "until a server that was taken out is tried again"] = 5.0

    def __post_init__(self) -> None:
        endpoints = (*self.prefill, *self.decode)
        for key, times in Counter(endpoint.key for endpoint in endpoints).items():
            if times > 1:
                raise InputError(f"--prefill and --decode: {key} is named more than once")
        for endpoint in endpoints:
            if not allowed(self.allow_worker, endpoint):
                raise InputError(f"--{endpoint.role}: {endpoint.key} is not in --allow-worker")

    @property
    def dynamic(self) -> bool:
        """Whether servers may come and go without the admin interface."""
        return bool(self.workers_file or self.prefill_dns or self.decode_dns)


class Security(Group, frozen=True):
    """Files of keys and certificates. Clients' keys are stored as hashes."""

    keys_file: Annotated[Path | None, "YAML file of tenants, their hashed keys and bounds"] = None
    admin_key_file: Annotated[
        Path | None, "hash of the key for /workers, /flush_cache and /metrics"
    ] = None
    engine_key_file: Annotated[Path | None, "key that the servers ask for (their --api-key)"] = None
    engine_admin_key_file: Annotated[
        Path | None, "the servers' --admin-api-key, for /flush_cache"
    ] = None
    allow_unauthenticated: Annotated[bool, "listen beyond loopback without keys"] = False
    open_metrics: Annotated[bool, "answer /metrics without the admin key"] = False
    engine_ca: Annotated[
        Path | None, "CA of the servers' certificates (PEM; default: the system's)"
    ] = None
    engine_cert: Annotated[Path | None, "certificate the servers see (PEM; mutual TLS)"] = None
    engine_cert_key: Annotated[Path | None, "private key of --engine-cert (PEM)"] = None

    def __post_init__(self) -> None:
        if (self.engine_cert is None) != (self.engine_cert_key is None):
            raise InputError("--engine-cert and --engine-cert-key: give both or neither")


class Scheduling(Group, frozen=True):
    """Default objectives, and the inputs of predictions."""

    ttft_slo_ms: Annotated[
        Annotated[float, within(*TTFT_RANGE_MS, "ms")] | None,
        "TTFT objective of requests that name none; without it they are best effort",
    ] = None
    tpot_slo_ms: Annotated[
        Annotated[float, within(*TPOT_RANGE_MS, "ms")] | None,
        "TPOT objective of requests that name none",
    ] = None
    slo_class: Annotated[
        tuple[Slo, ...],
        items("NAME=TTFT,TPOT", parse_class),
        "a class requests may choose, milliseconds; repeatable",
    ] = ()
    binding: Annotated[
        Binding, "when and to which pair requests go; all but urgency are for comparison"
    ] = DispatchParams().binding
    profile: Annotated[str, printable("NAME"), "latency profile, shipped name or file"] = (
        "minimax-m2.5-tp4-h200"
    )
    tokenizer_path: Annotated[
        Annotated[str, printable("PATH")] | None,
        "tokenizer.json, or the folder that holds one; without it lengths are estimated from bytes",
    ] = None

    def __post_init__(self) -> None:
        for name, times in Counter(slo.slo_class for slo in self.slo_class).items():
            if times > 1:
                raise InputError(f"--slo-class: {name!r} is defined more than once")

    @property
    def classes(self) -> SloClasses:
        ttft, tpot = (
            math.inf if objective is None else objective
            for objective in (self.ttft_slo_ms, self.tpot_slo_ms)
        )
        return SloClasses(Slo(ttft, tpot), {slo.slo_class: slo for slo in self.slo_class})


class Observability(Group, frozen=True):
    """Logs and response headers."""

    access_log: Annotated[
        str, printable("FILE"), "file of one JSON line per request; - is stdout, off none"
    ] = "-"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], "least severe message on stderr"
    ] = "info"
    show_servers: Annotated[
        bool, "name a request's servers in x-kairos-prefill and x-kairos-decode"
    ] = False


class RouterConfig(msgspec.Struct, frozen=True):
    """All settings. The attributes are the sections of a configuration file."""

    listen: Listen = msgspec.field(default_factory=Listen)
    limits: Limits = msgspec.field(default_factory=Limits)
    timeouts: Timeouts = msgspec.field(default_factory=Timeouts)
    overload: Overload = msgspec.field(default_factory=Overload)
    workers: Workers = msgspec.field(default_factory=Workers)
    security: Security = msgspec.field(default_factory=Security)
    scheduling: Scheduling = msgspec.field(default_factory=Scheduling)
    observability: Observability = msgspec.field(default_factory=Observability)

    def __post_init__(self) -> None:
        workers, security = self.workers, self.security
        if not workers.dynamic and not security.admin_key_file:
            for role in Role:
                if not getattr(workers, role.value):
                    raise InputError(
                        f"--{role.value}: no {role.value} server; name one, or give "
                        f"--workers-file, --{role.value}-dns, or --admin-key-file to add servers "
                        "through /workers"
                    )
        open_door = not security.keys_file and not security.allow_unauthenticated
        if open_door and not self.listen.loopback:
            raise InputError(
                f"--host {self.listen.host}: without --keys-file anyone who reaches this address "
                "could use the servers; give --keys-file, listen on 127.0.0.1, or say "
                "--allow-unauthenticated"
            )

    @staticmethod
    def groups() -> dict[str, type[Group]]:
        """Return the sections' types by name."""
        return {field.name: field.type for field in msgspec.structs.fields(RouterConfig)}
