"""Certificates and keys, looked at before anything is written: OpenSSL itself has to take them."""

from __future__ import annotations

import contextlib
import os
import ssl
import time
from collections.abc import Iterator

from agent.errors import ConfigError, ProvisionError
from agent.mqtt import tls


def check_authorities(pem: bytes) -> None:
    """Take certificates of authorities.

    Raises:
        ConfigError: they are none.
    """
    with _as_file(pem) as path:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except ssl.SSLError as error:
            raise ConfigError(f"no certificates in PEM ({_reason(error)}); it must begin with -----BEGIN") from None
        _check_days(path)


def check_pair(certificate: bytes, key: bytes) -> None:
    """Take a certificate with its key.

    Raises:
        ConfigError: one is none, they do not belong together, the key has a password, or the time is over.
    """
    with _as_file(certificate) as path, _as_file(key) as key_path:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(path, key_path, password=_refuse_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ConfigError("is not the certificate of the key; give the pair that belongs together") from None
            raise ConfigError(f"no certificate with its key, both in PEM ({_reason(error)})") from None
        _check_days(path)


def days_left(pem: bytes) -> int | None:
    """Return how many days a certificate is valid by this box's clock; None when that cannot be told."""
    with _as_file(pem) as path:
        days = tls.days_left(path, time.time())
    return None if days is None else int(days)


def _check_days(path: str) -> None:
    days = tls.days_left(path, time.time())
    if days is not None and days < 0:
        now = time.strftime("%Y-%m-%d", time.gmtime())
        raise ConfigError(f"has expired {-days:.0f} days ago; get a new one, or set the clock here, it says {now}")


def _refuse_password() -> str:
    raise ConfigError("the key is protected by a password; a service needs one without")


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "unreadable").replace("_", " ").lower()


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Give OpenSSL, which wants the name of a file, one that is in memory only."""
    number = os.memfd_create("pem")
    try:
        try:
            os.write(number, content)
        except OSError as error:
            raise ProvisionError(f"no memory to look at a key: {error.strerror}") from error
        yield f"/proc/self/fd/{number}"
    finally:
        os.close(number)
