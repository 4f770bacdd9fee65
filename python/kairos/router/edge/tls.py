"""TLS towards clients and towards servers."""

import ssl
from pathlib import Path

from kairos.errors import InputError
from kairos.router.config.settings import Listen, Security


def server_context(listen: Listen) -> ssl.SSLContext | None:
    """For clients' connections; None where the router serves plain HTTP.

    Raises:
        InputError: a file does not hold what it should.
    """
    if listen.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    load_certificate(context, listen.tls_cert, listen.tls_key, "--tls-cert, --tls-key")
    if listen.tls_client_ca is not None:
        _load_ca(context, listen.tls_client_ca, "--tls-client-ca")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(security: Security) -> ssl.SSLContext:
    """For connections to servers with `https` addresses; their certificates are always checked.

    Raises:
        InputError: a file does not hold what it should.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if security.engine_ca is not None:
        # Only this one: a server inside is not to be vouched for by any public CA.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        _load_ca(context, security.engine_ca, "--engine-ca")
    if security.engine_cert is not None:
        where = "--engine-cert, --engine-cert-key"
        load_certificate(context, security.engine_cert, security.engine_cert_key, where)
    return context


def reload_certificate(context: ssl.SSLContext, listen: Listen) -> str | None:
    """Take a renewed certificate into use; return why the old one stays, None if it does not."""
    if listen.tls_cert is None:
        return None
    where = "--tls-cert, --tls-key"
    try:
        # A context that took half of a bad pair is broken; so the pair is tried on another one.
        load_certificate(
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), listen.tls_cert, listen.tls_key, where
        )
        load_certificate(context, listen.tls_cert, listen.tls_key, where)
    except InputError as error:
        return str(error)
    return None


def load_certificate(context: ssl.SSLContext, cert: Path, key: Path | None, where: str) -> None:
    """Load a chain and its private key, which must not be encrypted.

    Raises:
        InputError: unreadable, no PEM, encrypted, or key and certificate do not match.
    """

    def password() -> str:
        raise InputError(f"{where}: the private key {key} is encrypted; it must not be")

    try:
        context.load_cert_chain(cert, key, password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{where}: {cert} and {key} are no certificate chain and its private key in PEM "
            f"({_reason(error)}); give the two files of one certificate"
        ) from None


def _load_ca(context: ssl.SSLContext, path: Path, flag: str) -> None:
    try:
        context.load_verify_locations(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{flag}: {path} holds no CA certificate in PEM ({_reason(error)}); give one that does"
        ) from None


def _reason(error: Exception) -> str:
    """The cause in words; OpenSSL puts its own source file into the message."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not PEM").replace("_", " ").lower()
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
