"""API keys, the tenants behind them, and the admin key.

Files hold SHA-256 hashes of keys, not keys. Keys are random, 256 bits, so a plain hash is enough:
there is nothing to guess. The time of a look-up depends on the hash alone, which no client
without the key can steer towards a known one; so time tells nothing about a key.
"""

import hashlib
import hmac
import logging
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kairos.errors import InputError
from kairos.router.config.load import read_document, read_text, refuse_unknown
from kairos.router.config.settings import RouterConfig
from kairos.router.edge.errors import unauthorized
from kairos.router.edge.tenant import ANONYMOUS, Tenant, parse_classes, parse_tenants

_log = logging.getLogger(__name__)

_PREFIX = "sha256:"
_MAX_KEY = 512  # bytes; longer ones are not ours


class Headers(Protocol):
    """What is asked of request headers; aiohttp's and other multi-dicts have it."""

    def getall(self, name: str, default: list[str]) -> Iterable[str]: ...


@dataclass(frozen=True, slots=True)
class Keys:
    """One state of the files; replaced as a whole when they are read again."""

    tenants: Mapping[bytes, Tenant] | None  # by hash of their keys; None: no keys are asked for
    admin: tuple[bytes, ...]
    anonymous: Tenant
    engine_key: str | None
    engine_admin_key: str | None


class Keyring:
    """The keys in force, from the files that `config` names.

    Raises:
        InputError: a file is unreadable or malformed.
    """

    def __init__(self, config: RouterConfig) -> None:
        self._config = config
        self._keys = load_keys(config)

    @property
    def tenants(self) -> tuple[Tenant, ...]:
        """The tenants that may send requests, each once."""
        by_key = self._keys.tenants
        if by_key is None:
            return (self._keys.anonymous,)
        return tuple({tenant.name: tenant for tenant in by_key.values()}.values())

    def engine_headers(self) -> dict[str, str]:
        """What the servers get with every request, instead of the client's key."""
        return _authorization(self._keys.engine_key)

    def admin_headers(self) -> dict[str, str]:
        """The same for the servers' administrative endpoints; falls back to the engine key."""
        return _authorization(self._keys.engine_admin_key or self._keys.engine_key)

    def authenticate(self, headers: Headers) -> Tenant:
        """Whose request this is.

        Raises:
            RequestError: 401, no key or one that is not known.
        """
        by_key = self._keys.tenants
        if by_key is None:
            return self._keys.anonymous
        tenant = by_key.get(_digest(_bearer(headers)))
        if tenant is None:
            raise unauthorized("this API key is not known")
        return tenant

    def authorize_admin(self, headers: Headers, *, changes: bool = True) -> None:
        """Let the administrator pass.

        Without `changes` of the servers everyone may where neither an admin key nor API keys are
        set, which is the case on loopback only, unless `--allow-unauthenticated` says otherwise.

        Raises:
            RequestError: 401 without the admin key, 403 where none is configured.
        """
        keys = self._keys
        if not keys.admin:
            if not changes and keys.tenants is None:
                return
            raise unauthorized("this needs an admin key; the router has no --admin-key-file", 403)
        digest = _digest(_bearer(headers))
        if not any(hmac.compare_digest(known, digest) for known in keys.admin):
            raise unauthorized("this is not the admin key")

    def authorize_metrics(self, headers: Headers) -> None:
        """Check that a client may read /metrics; `--open-metrics` allows all clients."""
        if not self._config.security.open_metrics:
            self.authorize_admin(headers, changes=False)

    def reload(self) -> str | None:
        """Read the files again; return why the old keys stay in force, None if they do not."""
        try:
            self._keys = load_keys(self._config)
        except InputError as error:
            _log.error("keys and classes stay as they are: %s", error)
            return str(error)
        _log.info("keys and classes read again: %d tenants", len(self.tenants))
        return None


def load_keys(config: RouterConfig) -> Keys:
    """Read every file of keys.

    Raises:
        InputError: a file is unreadable or malformed.
    """
    security = config.security
    offered = config.scheduling.classes
    tenants = None
    if security.keys_file is not None:
        where = f"--keys-file: {security.keys_file}"
        document = read_document(security.keys_file, "--keys-file")
        refuse_unknown(document, ("classes", "tenants"), where)
        offered = parse_classes(document.get("classes", {}), offered, where)
        tenants = {}
        for tenant, hashes in parse_tenants(document.get("tenants", {}), offered, where):
            for written in hashes:
                digest = parse_hash(written, f"{where}: tenants.{tenant.name}.keys")
                if digest in tenants:
                    raise InputError(f"{where}: tenants.{tenant.name}.keys: a key is used twice")
                tenants[digest] = tenant
        if not tenants:
            raise InputError(f"{where}: no tenant has a key, so no request could be sent")
    admin: tuple[bytes, ...] = ()
    if security.admin_key_file is not None:
        where = f"--admin-key-file: {security.admin_key_file}"
        lines = _lines(security.admin_key_file, "--admin-key-file")
        admin = tuple(parse_hash(line, where) for line in lines)
        if not admin:
            raise InputError(f"{where}: no key in there; generate one with kairos-router key")
        if tenants and set(admin) & set(tenants):
            raise InputError(f"{where}: the admin key is also a tenant's; it must be a key apart")
    return Keys(
        tenants,
        admin,
        Tenant(ANONYMOUS, offered, may_tighten=True, trust_elapsed=True),
        _secret(security.engine_key_file, "--engine-key-file"),
        _secret(security.engine_admin_key_file, "--engine-admin-key-file"),
    )


def new_key() -> tuple[str, str]:
    """A fresh key and what to write into a file for it."""
    key = f"kr-{secrets.token_urlsafe(32)}"
    return key, hash_key(key)


def hash_key(key: str) -> str:
    """What to write into a file for a key."""
    return _PREFIX + hashlib.sha256(key.encode()).hexdigest()


def parse_hash(text: object, where: str) -> bytes:
    """Read `sha256:HEX`.

    Raises:
        InputError: another form. The value is not repeated: it may be a key.
    """
    digits = text.removeprefix(_PREFIX) if isinstance(text, str) else ""
    try:
        digest = bytes.fromhex(digits)
    except ValueError:
        digest = b""
    if not isinstance(text, str) or not text.startswith(_PREFIX) or len(digest) != 32:
        raise InputError(
            f"{where}: a value is not sha256: and 64 hexadecimal digits; make one with "
            "kairos-router key"
        )
    return digest


def _authorization(key: str | None) -> dict[str, str]:
    return {} if key is None else {"authorization": f"Bearer {key}"}


def _bearer(headers: Headers) -> str:
    values = list(headers.getall("Authorization", []))
    if len(values) != 1:
        problem = "no" if not values else "more than one"
        raise unauthorized(f"{problem} Authorization header; send Authorization: Bearer KEY")
    scheme, _, key = values[0].partition(" ")
    if scheme.lower() != "bearer" or not key.strip() or len(key) > _MAX_KEY:
        raise unauthorized("the Authorization header is not Bearer KEY")
    return key.strip()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _lines(path: Path, flag: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in read_text(path, flag).splitlines())
    return [line for line in lines if line]


def _secret(path: Path | None, flag: str) -> str | None:
    if path is None:
        return None
    lines = _lines(path, flag)
    if len(lines) != 1 or not lines[0].isascii() or not lines[0].isprintable():
        raise InputError(f"{flag}: {path}: it must hold one line of printable ASCII, the key")
    return lines[0]
