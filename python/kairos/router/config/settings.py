"""Everything that can be set about the router, grouped by noun.

Values are checked when a group is built; an `InputError` names the flag, the value and the allowed
range. A value that no operator should change is a constant where it is used.
"""

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kairos.errors import InputError
from kairos.router.config.schema import (
    check,
    choice,
    count,
    file,
    knob,
    real,
    seconds,
    shown,
    switch,
    word,
)
from kairos.router.queue.params import Binding, DispatchParams, Infeasible
from kairos.router.workers.endpoint import (
    Pattern,
    Role,
    WorkerEndpoint,
    allowed,
    parse_endpoint,
    parse_pattern,
)
from kairos.slo import TPOT_RANGE_MS, TTFT_RANGE_MS, Slo, SloClasses, parse_class

MIB = 1 << 20
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\[\]:-]{1,253}")


def _origins(text: str) -> Any:
    def read(value: object, where: str) -> str:
        if isinstance(value, str) and (value == "*" or _ORIGIN.fullmatch(value)):
            return value
        raise InputError(f"{where}: {shown(value)} is not * or an origin like https://example.com")

    return knob((), read, text, "ORIGIN", many=True)


@dataclass(frozen=True, slots=True)
class Listen:
    """Where clients reach the router.

    `cell` is this process's number among `cells`, set by the parent that supervises them; None in
    the parent and where there is one process only.
    """

    host: str = word("127.0.0.1", "address to listen on", "HOST")
    port: int = count(30000, "port to listen on; 0 takes a free one", 0, 65535, "PORT")
    tls_cert: Path | None = file("certificate chain (PEM); serves HTTPS")
    tls_key: Path | None = file("private key of --tls-cert (PEM)")
    tls_client_ca: Path | None = file("CA that client certificates must come from (PEM)")
    cors_origin: tuple[str, ...] = _origins(
        "origin whose pages may use the API; * for all; repeatable"
    )

    def __post_init__(self) -> None:
        check(self)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("--tls-cert and --tls-key: give both or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise InputError("--tls-client-ca: needs --tls-cert")

    @property
    def loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class Limits:
    """What the router holds at most; more is answered with 413, 429 or 431."""

    max_queued_requests: int = count(4096, "requests that wait for a pair", 1, 1_000_000)
    max_queued_sequences: int = count(16_384, "sequences that wait (n, prompt lists)", 1, 1_000_000)
    max_queued_mib: int = count(512, "memory of waiting bodies, MiB", 1, 1_000_000, "MIB")
    max_reading_mib: int = count(512, "memory of bodies not queued yet, MiB", 1, 1_000_000, "MIB")
    max_body_mib: int = count(32, "size of one body, MiB", 1, 4096, "MIB")
    max_sequences: int = count(128, "sequences of one request (n, prompt lists)", 1, 100_000)
    max_headers: int = count(100, "header lines of a request", 8, 1000)
    max_header_kib: int = count(16, "size of all header lines of a request, KiB", 1, 256, "KIB")
    max_connections: int = count(16_384, "open client connections", 1, 1_000_000)

    def __post_init__(self) -> None:
        check(self)
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


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long the router waits at most, seconds."""

    header_timeout_s: float = seconds(10.0, "for a client's header lines to arrive")
    body_timeout_s: float = seconds(60.0, "for a client's body to arrive")
    write_timeout_s: float = seconds(60.0, "for a client to go on reading its answer")
    queue_timeout_s: float = seconds(60.0, "for a request to get a pair; then 504")
    request_timeout_s: float = seconds(3600.0, "for a request to end, waiting included; then 504")
    first_byte_timeout_s: float = seconds(
        300.0, "for a pair to send its first byte, from dispatch; then 504"
    )
    stream_idle_timeout_s: float = seconds(120.0, "for a pair to send the next byte of a stream")
    connect_timeout_s: float = seconds(2.0, "for a connection to a server to open", high=60.0)
    drain_delay_s: float = seconds(
        0.0, "from SIGTERM until requests are refused; /ready says 503 meanwhile", low=0.0
    )
    drain_timeout_s: float = seconds(60.0, "for running requests to end after SIGTERM")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class Overload:
    """What happens to a request when there is no room, or no hope, for it."""

    overload_status: int = choice(429, (429, 503, 529), "status of a refusal under overload")
    infeasible: Infeasible = choice(
        DispatchParams().infeasible,
        tuple(Infeasible),
        "what happens to a request that is predicted to miss its TTFT objective; reject answers "
        "it at once",
    )
    retries: int = count(1, "further pairs tried while no byte was sent", 0, 8)

    def __post_init__(self) -> None:
        check(self)


def _endpoints(role: Role, text: str) -> Any:
    prefill = role is Role.PREFILL

    def read(value: object, where: str) -> WorkerEndpoint:
        if isinstance(value, WorkerEndpoint):
            return value
        words = [value] if isinstance(value, str) else value
        if not isinstance(words, (list, tuple)) or not 1 <= len(words) <= (2 if prefill else 1):
            allowed = "URL or URL BOOTSTRAP_PORT" if prefill else "one URL"
            raise InputError(f"{where}: {shown(value)} is not {allowed}")
        return parse_endpoint(role, words[0], words[1] if len(words) == 2 else None, where)

    if prefill:
        return knob((), read, text, "URL BOOTSTRAP_PORT", words="+", many=True)
    return knob((), read, text, "URL", many=True)


def _patterns(text: str) -> Any:
    def read(value: object, where: str) -> Pattern:
        return value if isinstance(value, Pattern) else parse_pattern(value, where)

    return knob((), read, text, "HOST:PORT", many=True)


@dataclass(frozen=True, slots=True)
class Workers:
    """Where the servers are, and when one is taken out."""

    prefill: tuple[WorkerEndpoint, ...] = _endpoints(Role.PREFILL, "a prefill server; repeatable")
    decode: tuple[WorkerEndpoint, ...] = _endpoints(Role.DECODE, "a decode server; repeatable")
    workers_file: Path | None = file("YAML file of servers, read again when it changes")
    prefill_dns: tuple[WorkerEndpoint, ...] = _endpoints(
        Role.PREFILL, "a name whose every address is a prefill server; repeatable"
    )
    decode_dns: tuple[WorkerEndpoint, ...] = _endpoints(
        Role.DECODE, "a name whose every address is a decode server; repeatable"
    )
    dns_interval_s: float = seconds(5.0, "between two look-ups of the names", low=0.05)
    allow_worker: tuple[Pattern, ...] = _patterns(
        "servers may be nowhere else; parts may be *, and HOST a network like 10.0.0.0/8; "
        "repeatable"
    )
    health_interval_s: float = seconds(2.0, "between two health checks of a server", low=0.05)
    health_timeout_s: float = seconds(5.0, "for a health check to be answered", low=0.05)
    breaker_failures: int = count(3, "failures in a row that take a server out", 1, 1000)
    breaker_open_s: float = seconds(
        5.0, "until a server that was taken out is tried again", low=0.05
    )

    def __post_init__(self) -> None:
        check(self)
        keys = [endpoint.key for endpoint in (*self.prefill, *self.decode)]
        for key in keys:
            if keys.count(key) > 1:
                raise InputError(f"--prefill and --decode: {key} is named more than once")
        for endpoint in (*self.prefill, *self.decode):
            if not allowed(self.allow_worker, endpoint):
                raise InputError(f"--{endpoint.role}: {endpoint.key} is not in --allow-worker")

    @property
    def dynamic(self) -> bool:
        """Whether servers may come and go without the admin interface."""
        return bool(self.workers_file or self.prefill_dns or self.decode_dns)


@dataclass(frozen=True, slots=True)
class Security:
    """Keys and certificates. Keys lie in files, hashed where the router only recognises them."""

    keys_file: Path | None = file("YAML file of tenants, their hashed keys and bounds")
    admin_key_file: Path | None = file("hash of the key for /workers, /flush_cache and /metrics")
    engine_key_file: Path | None = file("key that the servers ask for (their --api-key)")
    engine_admin_key_file: Path | None = file("the servers' --admin-api-key, for /flush_cache")
    allow_unauthenticated: bool = switch("listen beyond loopback without keys")
    open_metrics: bool = switch("answer /metrics without the admin key")
    engine_ca: Path | None = file("CA of the servers' certificates (PEM; default: the system's)")
    engine_cert: Path | None = file("certificate the servers see (PEM; mutual TLS)")
    engine_cert_key: Path | None = file("private key of --engine-cert (PEM)")

    def __post_init__(self) -> None:
        check(self)
        if (self.engine_cert is None) != (self.engine_cert_key is None):
            raise InputError("--engine-cert and --engine-cert-key: give both or neither")


def _classes() -> Any:
    def read(value: object, where: str) -> Slo:
        if isinstance(value, Slo):
            return value
        if not isinstance(value, str):
            raise InputError(f"{where}: {shown(value)} is not NAME=TTFT_MS,TPOT_MS")
        return parse_class(value, where)

    text = "a class requests may choose, milliseconds; repeatable"
    return knob((), read, text, "NAME=TTFT,TPOT", many=True)


@dataclass(frozen=True, slots=True)
class Scheduling:
    """Default objectives, and what requests are predicted from."""

    ttft_slo_ms: float = real(
        2000.0, "TTFT objective of requests that name none", *TTFT_RANGE_MS, "MS", "milliseconds"
    )
    tpot_slo_ms: float = real(
        50.0, "TPOT objective of requests that name none", *TPOT_RANGE_MS, "MS", "milliseconds"
    )
    slo_class: tuple[Slo, ...] = _classes()
    binding: Binding = choice(
        DispatchParams().binding,
        tuple(Binding),
        "when and to which pair requests go; all but urgency are for comparison",
    )
    profile: str = word("minimax-m2.5-tp4-h200", "latency profile, shipped name or file", "NAME")
    tokenizer_path: str | None = word(
        None,
        "tokenizer.json, or the folder that holds one; without it lengths are estimated from bytes",
        "PATH",
    )

    def __post_init__(self) -> None:
        check(self)
        names = [slo.slo_class for slo in self.slo_class]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"--slo-class: {name!r} is defined more than once")

    @property
    def classes(self) -> SloClasses:
        return SloClasses(
            Slo(self.ttft_slo_ms, self.tpot_slo_ms), {slo.slo_class: slo for slo in self.slo_class}
        )


@dataclass(frozen=True, slots=True)
class Observability:
    """What the router says about itself."""

    access_log: str = word("-", "file of one JSON line per request; - is stdout, off none", "FILE")
    log_level: str = choice(
        "info", ("debug", "info", "warning", "error"), "least severe message on stderr"
    )
    show_servers: bool = switch("name a request's servers in x-kairos-prefill and x-kairos-decode")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """All of it. The attributes are the sections of a configuration file."""

    listen: Listen = field(default_factory=Listen)
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    overload: Overload = field(default_factory=Overload)
    workers: Workers = field(default_factory=Workers)
    security: Security = field(default_factory=Security)
    scheduling: Scheduling = field(default_factory=Scheduling)
    observability: Observability = field(default_factory=Observability)

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
