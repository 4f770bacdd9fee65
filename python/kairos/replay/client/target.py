"""Where a replay sends its requests."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from kairos.errors import InputError


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server that gets the request.

    Attributes:
        name: for messages.
        url: base URL without a slash at the end.
        streams: whether the tokens of the request come from here.
        bootstrap_host, bootstrap_port: where the decode server finds a prefill server's KV.
    """

    name: str
    url: str
    streams: bool = True
    bootstrap_host: str = ""
    bootstrap_port: int = 0


class Target(Protocol):
    """Chooses the legs of each request: one, or prefill first and decode second.

    Attributes:
        pairs: different choices there are.
    """

    pairs: int

    def legs(self, index: int) -> Sequence[Endpoint]:
        """Legs for the request at `index` of the replay."""

    def describe(self) -> list[str]:
        """For the record's header."""


class UrlTarget:
    """A router or a single server.

    Raises:
        InputError: not an http or https URL.
    """

    pairs = 1

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        try:
            known = parts.hostname and parts.port != 0
        except ValueError:  # a port that is none
            known = False
        if parts.scheme not in ("http", "https") or not known or parts.query:
            raise InputError(f"--url: {url!r} is not allowed; it must look like http://HOST:PORT")
        self._leg = Endpoint("server", url.rstrip("/"))

    def legs(self, index: int) -> Sequence[Endpoint]:
        return (self._leg,)

    def describe(self) -> list[str]:
        return [self._leg.url]


class PairTarget:
    """Prefill and decode servers without a router between: each request goes to both legs of a
    pair, pairs taking turns. Takes a router's delays and CPU time out of the measurement."""

    def __init__(self, prefill: Sequence[Endpoint], decode: Sequence[Endpoint]) -> None:
        if not prefill or not decode:
            raise InputError("a pair needs at least one prefill and one decode server")
        self._prefill = tuple(prefill)
        self._decode = tuple(decode)
        self.pairs = len(prefill) * len(decode)

    def legs(self, index: int) -> Sequence[Endpoint]:
        prefill = self._prefill[index % len(self._prefill)]
        # Shifted each time the prefill servers were gone through, so that all pairs occur.
        shift = index + index // len(self._prefill)
        return (prefill, self._decode[shift % len(self._decode)])

    def describe(self) -> list[str]:
        return [leg.url for leg in (*self._prefill, *self._decode)]
