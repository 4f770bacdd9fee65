"""The servers to which a replay sends its requests."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from kairos.errors import InputError


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that receives the request.

    Attributes:
        name: name of the server in messages.
        url: base URL without a slash at the end.
        streams: whether the tokens of the request come from this server.
        bootstrap_host: host from which the decode server fetches this prefill server's KV.
        bootstrap_port: port of the same.
    """

    name: str
    url: str
    streams: bool = True
    bootstrap_host: str = ""
    bootstrap_port: int = 0


class Target(Protocol):
    """Chooses the endpoints of each request: one, or a prefill and then a decode server.

    Attributes:
        pairs: number of different choices.
    """

    pairs: int

    def endpoints(self, index: int) -> Sequence[Endpoint]:
        """Return the endpoints of the request at `index` of the replay."""

    def describe(self) -> list[str]:
        """Return the URLs for the header of the record file."""


class UrlTarget:
    """A router or a single server.

    Raises:
        InputError: not an http or https URL.
    """

    pairs = 1

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        try:
            has_address = parts.hostname and parts.port != 0
        except ValueError:  # the port is no number, or out of range
            has_address = False
        if parts.scheme not in ("http", "https") or not has_address or parts.query:
            raise InputError(f"--url: {url!r} is not allowed; it must look like http://HOST:PORT")
        self._endpoint = Endpoint("server", url.rstrip("/"))

    def endpoints(self, index: int) -> Sequence[Endpoint]:
        return (self._endpoint,)

    def describe(self) -> list[str]:
        return [self._endpoint.url]


class PairTarget:
    """Prefill and decode servers without a router; each request goes to both servers of a pair.

    Pairs take turns. The measurement is free of a router's delays and CPU time.

    Raises:
        InputError: one of the two roles has no server.
    """

    def __init__(self, prefill: Sequence[Endpoint], decode: Sequence[Endpoint]) -> None:
        if not prefill or not decode:
            raise InputError("a pair needs at least one prefill and one decode server")
        self._prefill = tuple(prefill)
        self._decode = tuple(decode)
        self.pairs = len(prefill) * len(decode)

    def endpoints(self, index: int) -> Sequence[Endpoint]:
        prefill = self._prefill[index % len(self._prefill)]
        # The decode servers shift by one after each turn of the prefill servers, so that every
        # pair occurs.
        shift = index + index // len(self._prefill)
        return (prefill, self._decode[shift % len(self._decode)])

    def describe(self) -> list[str]:
        return [endpoint.url for endpoint in (*self._prefill, *self._decode)]
