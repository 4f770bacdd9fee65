"""Addresses of prefill and decode servers, and patterns of addresses."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from kairos.errors import InputError
from kairos.validation import shown

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_ADDRESS = "an address like http://10.0.0.1:30000"
_HOST = re.compile(r"[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")


class Role(Enum):
    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True, order=True)
class WorkerEndpoint:
    """Address and role of one server.

    Attributes:
        role: value of a `Role`; a string so that endpoints sort.
        url: `http://host:port` or `https://host:port`, lower case, nothing after the port.
        bootstrap_port: of a prefill server; None: the decode server's own
            `--disaggregation-bootstrap-port` holds.
        name: of its certificate, where a DNS name led to it; empty: its host.
    """

    role: str
    url: str
    bootstrap_port: int | None = None
    name: str = ""

    @property
    def key(self) -> str:
        """`host:port`, which names the server in the router."""
        return self.url.partition("://")[2]

    @property
    def host(self) -> str:
        """The host as the decode server must dial it for the bootstrap; no brackets."""
        return urlsplit(self.url).hostname or ""


def parse_endpoint(role: Role, url: object, bootstrap_port: object, where: str) -> WorkerEndpoint:
    """Read `http://host:port`, whose scheme may be left out, and a port, None or "none".

    Raises:
        InputError: another scheme, no port, or anything besides scheme, host and port.
    """
    port = None
    if bootstrap_port not in (None, "none"):
        port = _port(bootstrap_port, where)
    return WorkerEndpoint(role.value, _url(url, where), port)


def read_endpoint(role: Role, item: object, where: str) -> WorkerEndpoint:
    """Read an item of a file or of a flag: URL, for prefill servers also [URL, BOOTSTRAP_PORT].

    Raises:
        InputError: it is not that.
    """
    words = item if isinstance(item, list | tuple) else [item]
    if not 1 <= len(words) <= (2 if role is Role.PREFILL else 1):
        known = "URL or URL BOOTSTRAP_PORT" if role is Role.PREFILL else _ADDRESS
        raise InputError(f"{where}: {shown(item)} is not {known}")
    return parse_endpoint(role, words[0], words[1] if len(words) == 2 else None, where)


def _url(url: object, where: str) -> str:
    """Return an address in its one spelling, `scheme://host:port`."""
    text = url if isinstance(url, str) else ""
    scheme, found, rest = text.partition("://")
    if not found:
        scheme, rest = "http", text
    host, colon, port = rest.removesuffix("/").rpartition(":")
    if scheme not in ("http", "https") or not colon or not _HOST.fullmatch(host):
        raise InputError(f"{where}: {shown(url)} is not {_ADDRESS}")
    return f"{scheme}://{host.lower()}:{_port(port, where)}"


@dataclass(frozen=True, slots=True)
class Pattern:
    """Addresses that servers may have.

    Attributes:
        host: a name, `*`, or `*.suffix`; unused where `network` is given.
        port: None allows every port.
    """

    host: str
    network: Network | None
    port: int | None

    def matches(self, endpoint: WorkerEndpoint) -> bool:
        host, _, port = endpoint.key.rpartition(":")
        host = host.strip("[]")
        if self.port not in (None, int(port)):
            return False
        if self.network is None:
            return fnmatchcase(host, self.host)
        try:
            return ipaddress.ip_address(host) in self.network
        except ValueError:
            return False


def parse_pattern(value: object, where: str) -> Pattern:
    """Read `HOST:PORT`; either may be `*`, HOST also `*.suffix` or a network like `10.0.0.0/8`.

    Raises:
        InputError: another form.
    """
    text = value.lower() if isinstance(value, str) else ""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    wildcard = host == "*" or _HOST.fullmatch(host.removeprefix("*."))
    network = None
    if "/" in host or ":" in host:
        try:
            network = ipaddress.ip_network(host)
        except ValueError:
            wildcard = None
    if not colon or not (wildcard or network):
        raise InputError(
            f"{where}: {shown(value)} is not HOST:PORT; either may be *, HOST also *.suffix or a "
            "network like 10.0.0.0/8"
        )
    return Pattern(host, network, None if port == "*" else _port(port, where))


def allowed(patterns: Sequence[Pattern], endpoint: WorkerEndpoint) -> bool:
    """Whether a pattern allows the address of a server; without patterns every one is allowed."""
    return not patterns or any(pattern.matches(endpoint) for pattern in patterns)


def _port(port: object, where: str) -> int:
    digits = str(port)
    number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 6 else 0
    if isinstance(port, bool) or not 1 <= number <= 65535:
        raise InputError(f"{where}: {shown(port)} is not a port; allowed are 1 to 65535")
    return number
