"""TLS to the broker: contexts from the configured files, and one line that says why a connection could not be made."""

from __future__ import annotations

import base64
import calendar
import contextlib
import errno
import os
import re
import socket
import ssl
import time
from pathlib import Path
from typing import Any

from agent.config import BrokerConfig
from agent.errors import ConfigError

DAY_S = 86_400.0

Stamp = tuple[tuple[str, int, int, int], ...]
"""Name, inode, size and change time of each certificate file: differs when one was replaced."""


class Context(ssl.SSLContext):
    """Verifies the broker and its name, always; keeps what went wrong after the handshake, which paho does not tell."""

    failure: OSError | None = None


class _Socket(ssl.SSLSocket):
    """Closes itself when the handshake fails, and notes what ends the connection later.

    With TLS 1.3 the broker looks at this side's certificate after the handshake is done here; its answer is an alert
    at the first read.
    """

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except (OSError, ValueError):
            self.close()
            raise

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            return super().recv(buflen, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError as error:
            self._note(error)
            raise

    def send(self, data: Any, flags: int = 0) -> int:
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError as error:
            self._note(error)
            with contextlib.suppress(OSError, ValueError):
                self.recv(1)  # the alert that says why came before the other side closed
            raise

    def _note(self, error: OSError) -> None:
        if isinstance(self.context, Context):
            self.context.failure = error


def make_context(broker: BrokerConfig) -> Context:
    """Return a context with the certificates as they are in the files now.

    Raises:
        ConfigError: a file is missing, is none of its kind, or key and certificate differ.
    """
    context = Context(ssl.PROTOCOL_TLS_CLIENT)  # checks the certificate and the host name
    context.sslsocket_class = _Socket
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(broker.ca_file, "mqtt.ca_file", lambda name: context.load_verify_locations(name))
    if not broker.ca_file:
        context.load_default_certs()
    if broker.cert_file:
        _check_readable(broker.key_file, "mqtt.key_file")
        # Without a password function OpenSSL would ask on the terminal.
        _load(
            broker.cert_file,
            "mqtt.cert_file",
            lambda name: context.load_cert_chain(name, broker.key_file, password=_no_password),
            f" or its mqtt.key_file = {broker.key_file!r}",
        )
    return context


class _EncryptedKey(ConfigError):
    pass


def _no_password() -> str:
    raise _EncryptedKey("the key is protected by a password; a service needs one without")


def _check_readable(name: str, key: str) -> None:
    try:
        with open(name, "rb"):
            pass
    except OSError as error:
        raise ConfigError(f"{key} = {name!r}: {error.strerror}") from error


def _load(name: str, key: str, load: Any, other: str = "") -> None:
    if not name:
        return
    _check_readable(name, key)
    try:
        load(name)
    except _EncryptedKey as error:
        raise ConfigError(f"mqtt.key_file: {error}") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(
                f"{key} = {name!r}: mqtt.key_file is not its key; give the pair that belongs together"
            ) from None
        raise ConfigError(f"{key} = {name!r}{other}: no PEM file of this kind ({error.reason})") from None
    except OSError as error:
        raise ConfigError(f"{key} = {name!r}{other}: {error.strerror}") from error


def stamp(broker: BrokerConfig) -> Stamp:
    """Return what tells whether a certificate file was replaced."""
    found = []
    for name in filter(None, (broker.ca_file, broker.cert_file, broker.key_file)):
        try:
            status = os.stat(name)
        except OSError:
            found.append((name, 0, 0, 0))
        else:
            found.append((name, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


def days_left(name: str, now_s: float) -> float | None:
    """Return how many days the first certificate of a PEM file is valid for; None when that cannot be told."""
    try:
        text = Path(name).read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    block = re.search(r"-----BEGIN CERTIFICATE-----(.+?)-----END", text, re.DOTALL)
    try:
        return (_not_after(base64.b64decode(block[1])) - now_s) / DAY_S if block else None
    except (ValueError, IndexError):
        return None


def peer_days_left(connection: Any, now_s: float) -> float | None:
    """Return how many days the broker's certificate is valid for; None without TLS."""
    if not isinstance(connection, ssl.SSLSocket):
        return None
    try:
        until = (connection.getpeercert() or {}).get("notAfter")
        return (ssl.cert_time_to_seconds(until) - now_s) / DAY_S if isinstance(until, str) else None
    except (ValueError, OSError):
        return None


def _not_after(der: bytes) -> float:
    """Return the end of validity of a certificate (RFC 5280, 4.1: version, serial, algorithm, issuer, validity)."""
    position = _inside(der, _inside(der, 0))
    if der[position] == 0xA0:  # an explicit version
        position = _behind(der, position)
    for _ in range(3):
        position = _behind(der, position)
    until = _behind(der, _inside(der, position))  # validity: not before, not after
    text = der[_inside(der, until) : _behind(der, until)].decode("ascii")
    if der[until] == 0x17:  # UTCTime has two digits of the year; 50 is 1950
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    return float(calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ")))


def _inside(der: bytes, at: int) -> int:
    """Return where the content of a DER element begins."""
    return at + 2 + (der[at + 1] & 0x7F if der[at + 1] & 0x80 else 0)


def _behind(der: bytes, at: int) -> int:
    """Return where the element after a DER element begins."""
    start = _inside(der, at)
    size = der[at + 1] if start == at + 2 else int.from_bytes(der[at + 2 : start], "big")
    return start + size


# ------------------------------------------------------------------------------------------------- reasons

_UNKNOWN_CA = "is signed by an authority that is not in {ca}; give the file of the broker's authority as mqtt.ca_file"
_VERIFY = {  # numbers of OpenSSL's X509_V_ERR_...
    9: "is not valid yet; is this machine's clock right? It says {now}",
    10: "has expired; renew it at the broker, or set this machine's clock, which says {now}",
    18: "is signed by itself and is not in {ca}; give it as mqtt.ca_file",
    19: _UNKNOWN_CA,
    20: _UNKNOWN_CA,
    21: _UNKNOWN_CA,
    23: "was revoked; the broker needs another",
    26: "is none for a server; the broker needs another",
    62: "is for another name than mqtt.host = {host}; give the name that is in it",
    64: "is for another address than mqtt.host = {host}; give the name that is in it",
    66: "has a key too short to be safe; the broker needs another",
    67: "is signed with a key too short to be safe; the broker needs another",
    68: "is signed with a digest too weak to be safe; the broker needs another",
}
_ALERTS = {  # OpenSSL's names of what the other side, or this one, says
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the broker wants a certificate of this side; set mqtt.cert_file and"
    " mqtt.key_file",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "the broker refused the handshake; it may want a certificate of this side"
    " (mqtt.cert_file and mqtt.key_file), or other ciphers",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the broker says mqtt.cert_file has expired; renew it",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "the broker says mqtt.cert_file was revoked; get another",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the broker refused mqtt.cert_file; get another of the authority it trusts",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the broker refused mqtt.cert_file; get another of the authority it trusts",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "the broker refused mqtt.cert_file; it must be one for clients",
    "TLSV1_ALERT_UNKNOWN_CA": "the broker does not know the authority that signed mqtt.cert_file; get one it trusts",
    "TLSV1_ALERT_ACCESS_DENIED": "the broker denied access with mqtt.cert_file; ask for this device to be allowed",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the broker speaks no TLS 1.2 or newer; it must be updated",
    "UNSUPPORTED_PROTOCOL": "the broker speaks no TLS 1.2 or newer; it must be updated",
    "WRONG_VERSION_NUMBER": "{host} port {port} answers, but not in TLS; set the port of the TLS listener, or"
    " mqtt.tls = false",
}
_PLAIN = (
    "{host} port {port} ended the TLS handshake; if this listener is without TLS set its TLS port, or mqtt.tls = false;"
    " otherwise see the broker's log"
)


def explain(error: Exception, broker: BrokerConfig, now_s: float) -> tuple[str, bool]:
    """Return one line for an error of connecting, and whether the other side (or a setting) said no.

    Args:
        error: what connecting raised, or what was noted in `Context.failure`.
        broker: whom it was about.
        now_s: Unix time of this machine, for the errors that a wrong clock makes.
    """
    values = {
        "host": broker.host,
        "port": broker.port,
        "ca": broker.ca_file or "the system's list",
        "now": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now_s)),
    }
    if isinstance(error, ConfigError):
        return str(error), True
    if isinstance(error, ssl.SSLCertVerificationError):
        said = _VERIFY.get(error.verify_code, f"cannot be trusted ({error.verify_message})")
        return f"the broker's certificate {said}".format(**values), True
    if isinstance(error, ssl.SSLEOFError):
        return _PLAIN.format(**values), True
    if isinstance(error, ssl.SSLError):
        said = _ALERTS.get(error.reason or "", f"TLS failed ({error.reason}); see the broker's log")
        return said.format(**values), True
    if isinstance(error, ConnectionResetError) and broker.tls:
        return _PLAIN.format(**values), True
    return _explain_network(error).format(**values), False


def _explain_network(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "the name mqtt.host = {host} cannot be resolved; check the name, the network and its DNS"
    if isinstance(error, UnicodeError):
        return "mqtt.host = {host} is no host name; correct it"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens at {host} port {port}; is the broker running, and is mqtt.port right?"
    if isinstance(error, TimeoutError):
        return "{host} port {port} does not answer; check the network, the address and firewalls"
    if isinstance(error, OSError) and error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN):
        return "there is no way to {host}; check the network"
    detail = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
    return f"{{host}} port {{port}}: {detail}"
