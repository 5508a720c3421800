"""The settings of the long-running programs: typed, strict, from TOML. `systemd/agent.toml` shows every key."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from msgspec import Meta

from agent import strict
from agent.errors import ConfigError
from agent.protocol import Verb
from agent.setting_types import (
    Days,
    DeviceName,
    Group,
    Host,
    Level,
    Secret,
    Store,
    Strict,
    TopicPrefix,
    Wait,
)
from agent.source_config import (
    CameraConfig,
    DocumentsConfig,
    FolderConfig,
    ScannerConfig,
    SourceConfig,
    UploadConfig,
    loopback,
)

MAX_SECRET_BYTES = 64 << 10


class ReaderConfig(Strict, frozen=True):
    """How pages are read.

    Attributes:
        bundle: directory of the models.
        threads: processor cores.
        engine: runtime; "auto" takes the first that is there.
        power_mode: which cores of an ARM processor Paddle Lite binds its threads to (`agent.lite.binding`).
        min_score: lines read with less are dropped.
    """

    bundle: str = "/opt/edge-ocr/current/bundle"
    threads: Annotated[int, Meta(ge=1, le=64)] = 1
    engine: Literal["auto", "paddlelite", "onnxruntime", "paddle"] = "auto"
    power_mode: Literal["any", "high", "low", "full", "some-high", "some-low"] = "any"
    min_score: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.55


class MemoryConfig(Strict, frozen=True):
    """What the worker may take.

    Attributes:
        limit_mb: what the worker and the processes it starts may have resident together; where it is too little for
            all threads, fewer read.
        idle_s: the models are given back when no page came for so long.
        large_pages: ask the system for memory pages of 2 MB: a tenth faster, and up to 20 MB less for pictures.
    """

    limit_mb: Annotated[int, Meta(ge=128, le=65_536)] = 256
    idle_s: Wait = 600.0
    large_pages: bool = False


class OutboxConfig(Strict, frozen=True):
    """Where results wait.

    Attributes:
        max_mb: the database takes no more than this.
        when_full: "stop" takes no more pages; "drop_oldest" gives up the oldest unconfirmed rows and says so.
        min_free_mb: no page is taken while the disk has less free than this.
        ballast_mb: a file of this size is kept to be given up when the disk is full, so that work can be recorded.
        max_attempts: a page that has ended the worker so often is put aside.
        keep_stored_days: rows stored at the centre are kept for so long, for `edge-ocr outbox`.
        remember_days: a picture is known again for so long.
    """

    max_mb: Annotated[int, Meta(ge=1, le=1 << 20)] = 512
    when_full: Literal["stop", "drop_oldest"] = "stop"
    min_free_mb: Annotated[int, Meta(ge=0, le=1 << 20)] = 64
    ballast_mb: Annotated[int, Meta(ge=0, le=1024)] = 4
    max_attempts: Annotated[int, Meta(ge=1, le=100)] = 3
    keep_stored_days: Days = 0.0
    remember_days: Days = 90.0


class LetOut(Strict, frozen=True):
    """Numbers that may leave the box.

    Attributes:
        name: what they are, for people.
        pattern: regular expression for the whole number, separators removed.
    """

    name: str
    pattern: Annotated[str, Meta(min_length=1, max_length=1000)]


class PrivacyConfig(Strict, frozen=True):
    """What is masked before a result is kept.

    Attributes:
        mask: whether long numbers and identity numbers are masked at all.
        min_digits: numbers with so many digits or more are.
        keep_last: so many of their last characters stay.
        let_out: numbers that are not masked.
    """

    mask: bool = True
    min_digits: Annotated[int, Meta(ge=6, le=32)] = 12
    keep_last: Annotated[int, Meta(ge=0, le=4)] = 4
    let_out: tuple[LetOut, ...] = ()


class HooksConfig(Strict, frozen=True):
    """Commands that are told of pages, one at a time and beside the reading.

    Attributes:
        on_accepted: program and arguments, started after each accepted page; empty for none.
        on_failed: likewise after each page that was refused.
        timeout_s: it is killed with its whole process group after so long.
        max_waiting: pages that wait for it; with more the oldest are not told.
    """

    on_accepted: tuple[str, ...] = ()
    on_failed: tuple[str, ...] = ()
    timeout_s: Wait = 10.0
    max_waiting: Annotated[int, Meta(ge=1, le=10_000)] = 100


class BrokerConfig(Strict, frozen=True):
    """How to reach a broker; the same for devices and collectors.

    Attributes:
        host: name or address.
        port: 8883 is usual with TLS, 1883 without.
        username: at the broker, or empty.
        password: where the password is.
        tls: whether the connection is encrypted; without, only for a broker on this machine or a closed network.
        ca_file: certificates that may sign the broker's; the system's where it is empty.
        cert_file: this side's certificate.
        key_file: its key.
        keepalive_s: a dead link is noticed after about twice this.
        topic_prefix: topics begin with it.
    """

    host: Host
    port: Annotated[int, Meta(ge=1, le=65_535)] = 8883
    username: str = ""
    password: Secret | None = None
    tls: bool = True
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    keepalive_s: Annotated[int, Meta(ge=1, le=3600)] = 30
    topic_prefix: TopicPrefix = "ocr/v1"


class MqttConfig(BrokerConfig, frozen=True):
    """How results are sent.

    Attributes:
        guarantee: "stored": a row is kept until a collector has confirmed that it is stored. "brokered": until the
            broker has taken it, which loses rows when the broker does.
        window: rows on their way at the same time, at most; the broker may ask for fewer.
        receipt_s: a row without a receipt for so long is asked after, then sent again.
        retry_max_s: the longest pause between attempts to connect.
        historical_s: a row older than this is marked historical.
        commands: what may be ordered over MQTT.
        home_assistant: whether discovery messages are sent.
        home_assistant_prefix: where to.
    """

    guarantee: Literal["stored", "brokered"] = "stored"
    window: Annotated[int, Meta(ge=1, le=1000)] = 20
    receipt_s: Wait = 60.0
    retry_max_s: Wait = 300.0
    historical_s: Wait = 300.0
    commands: tuple[Verb, ...] = ("status",)
    home_assistant: bool = False
    home_assistant_prefix: TopicPrefix = "homeassistant"


class AgentConfig(Strict, frozen=True):
    """The settings of `edge-ocr run`, `worker` and `uplink`.

    Attributes:
        device: name of this box at the centre.
        state_dir: where the outbox and the state are.
        log_level: least severe messages that are logged.
        reader: how pages are read.
        memory: what that may take.
        source: where they come from.
        documents: how files of several pages are read.
        outbox: where results wait.
        privacy: what is masked.
        hooks: what is told of each page.
        mqtt: where they go; without it they stay in the outbox.
    """

    device: DeviceName
    state_dir: Annotated[str, Meta(min_length=1)] = "/var/lib/edge-ocr"
    log_level: Level = "info"
    reader: ReaderConfig = ReaderConfig()
    memory: MemoryConfig = MemoryConfig()
    source: tuple[SourceConfig, ...] = ()
    documents: DocumentsConfig = DocumentsConfig()
    outbox: OutboxConfig = OutboxConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    hooks: HooksConfig = HooksConfig()
    mqtt: MqttConfig | None = None


class CollectorConfig(Strict, frozen=True):
    """The settings of `edge-ocr collect`.

    Attributes:
        name: of this collector; each of several has its own.
        store: "sqlite:PATH", or "postgresql://..." without a password.
        store_password: where the database's password is.
        group: name of a shared subscription for several collectors that store into one database.
        batch: rows committed together, at most.
        batch_s: and after this time at the latest.
        log_level: least severe messages that are logged.
        mqtt: the broker.
    """

    name: DeviceName
    mqtt: BrokerConfig
    store: Store = "sqlite:collector.db"
    store_password: Secret | None = None
    group: Group = ""
    batch: Annotated[int, Meta(ge=1, le=5000)] = 200
    batch_s: Annotated[float, Meta(ge=0.0, le=10.0)] = 0.25
    log_level: Level = "info"


T = TypeVar("T", AgentConfig, CollectorConfig)


def load(path: Path, kind: type[T], *, check_files: bool = True) -> T:
    """Read and check a configuration file.

    Args:
        path: the file.
        kind: what it configures.
        check_files: whether certificates must be there; the worker, another user, may have no right to see them.

    Raises:
        ConfigError: missing, unreadable, not TOML, an unknown key, or a value out of its range; with file, line, key,
            value and what is accepted.
    """
    return check(strict.Document(path), kind, check_files=check_files)


def check(document: strict.Document, kind: type[T], *, check_files: bool = True) -> T:
    """Return the settings in a file that was read; arguments and errors are those of `load`."""
    config = strict.check(document, kind)
    if config.mqtt is not None:
        _check_broker(document, config.mqtt, check_files)
    if isinstance(config, AgentConfig):
        _check_sources(document, config.source)
        _check_patterns(document, config.privacy)
        _check_hooks(document, config.hooks)
    else:
        _check_store(document, config.store)
    return config


def secret(where: str | None) -> str | None:
    """Return the secret a setting points at, without a final line break.

    Raises:
        ConfigError: it is not there, or empty.
    """
    if where is None:
        return None
    kind, _, name = where.partition(":")
    found = os.environ.get(name) if kind == "env" else _read_secret(where, kind, name)
    if found is None:
        raise ConfigError(f"{where}: the environment has no {name}")
    if not found:
        raise ConfigError(f"{where}: is empty")
    return found


def _read_secret(where: str, kind: str, name: str) -> str:
    path = Path(name)
    if kind == "credential":
        if "CREDENTIALS_DIRECTORY" not in os.environ:
            raise ConfigError(f"{where}: systemd gave no credentials; the unit needs LoadCredential={name}:PATH")
        if path.name != name:
            raise ConfigError(f"{where}: must be the name of a credential, without a directory")
        path = Path(os.environ["CREDENTIALS_DIRECTORY"], name)
    try:
        with path.open("rb") as file:
            return file.read(MAX_SECRET_BYTES).decode("utf-8").rstrip("\r\n")
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}") from error
    except ValueError:
        raise ConfigError(f"{where}: not UTF-8 text") from None  # a cause would show the secret


def _check_sources(document: strict.Document, sources: tuple[SourceConfig, ...]) -> None:
    """Refuse sources that would be taken for each other, or never give anything."""
    names: set[str] = set()
    for number, source in enumerate(sources):
        if source.name in names:
            raise document.wrong(("source", number, "name"), "another source has this name", source.name)
        names.add(source.name)
        if isinstance(source, UploadConfig):
            _check_upload(document, number, source)
    _check_folders(document, sources)
    _check_scanners(document, sources)
    _check_cameras(document, sources)


def _check_folders(document: strict.Document, sources: tuple[SourceConfig, ...]) -> None:
    folders: set[str] = set()
    for number, source in enumerate(sources):
        if not isinstance(source, FolderConfig):
            continue
        folder = os.path.realpath(source.path)
        if folder in folders:
            raise document.wrong(("source", number, "path"), "another source has this folder", source.path)
        if source.give_up_s < source.stable_s:
            why = f"must not be less than stable_s, {source.stable_s:g}"
            raise document.wrong(("source", number, "give_up_s"), why, source.give_up_s)
        folders.add(folder)


def _check_scanners(document: strict.Document, sources: tuple[SourceConfig, ...]) -> None:
    devices: set[str] = set()
    for number, source in enumerate(sources):
        if not isinstance(source, ScannerConfig):
            continue
        if source.device in devices:
            why = "another source has this scanner" if source.device else "is needed where there are several scanners"
            raise document.wrong(("source", number, "device"), why, source.device)
        if source.trigger == "feeder" and source.feeder.lower() == "flatbed":
            why = 'cannot be "feeder" where feeder is "flatbed"; "order" scans when `edge-ocr scan` says so'
            raise document.wrong(("source", number, "trigger"), why, source.trigger)
        devices.add(source.device)


def _check_upload(document: strict.Document, number: int, source: UploadConfig) -> None:
    """Refuse what would let others ask than programs on this machine."""
    if source.listen == "systemd" or source.listen.startswith("unix:"):
        return
    if loopback(source.listen) is None:
        why = "must be of this machine, 127.0.0.1:PORT or [::1]:PORT: pages do not go over a network"
        raise document.wrong(("source", number, "listen"), why, source.listen)
    if source.token is None and not source.anyone:
        why = "is missing: say where a token is, or let every program on this machine ask with anyone = true"
        raise document.wrong(("source", number, "token"), why)


def _check_cameras(document: strict.Document, sources: tuple[SourceConfig, ...]) -> None:
    devices: set[str] = set()
    for number, source in enumerate(sources):
        if not isinstance(source, CameraConfig):
            continue
        if re.search(r"://[^/?#]*@", source.device):
            why = "holds a user or a password; they belong in username and password"
            raise document.wrong(("source", number, "device"), why)
        if source.device in devices:
            raise document.wrong(("source", number, "device"), "another source has this device", source.device)
        for key, low, less, more in (
            ("right", "left", source.left, source.right),
            ("bottom", "top", source.top, source.bottom),
        ):
            if more - less < 0.01:
                raise document.wrong(("source", number, key), f"must be more than {low}, {less:g}, by 0.01", more)
        devices.add(source.device)


def _check_patterns(document: strict.Document, privacy: PrivacyConfig) -> None:
    for number, rule in enumerate(privacy.let_out):
        try:
            re.compile(rule.pattern)
        except (re.error, RecursionError, OverflowError) as error:
            at = ("privacy", "let_out", number, "pattern")
            raise document.wrong(at, f"must be a regular expression: {error}", rule.pattern) from error


def _check_hooks(document: strict.Document, hooks: HooksConfig) -> None:
    for key in ("on_accepted", "on_failed"):
        command = getattr(hooks, key)
        if command and not os.path.isabs(command[0]):
            raise document.wrong(("hooks", key), "must begin with the whole path of a program", command[0])
        if any("\0" in part for part in command):
            raise document.wrong(("hooks", key), "must not have a zero byte in it")


def _check_broker(document: strict.Document, broker: BrokerConfig, check_files: bool) -> None:
    for given, lacking in (("cert_file", "key_file"), ("key_file", "cert_file")):
        if getattr(broker, given) and not getattr(broker, lacking):
            raise document.wrong(("mqtt", given), f"needs {lacking} too", getattr(broker, given))
    for key in ("ca_file", "cert_file", "key_file"):
        name = getattr(broker, key)
        if name and not broker.tls:
            raise document.wrong(("mqtt", key), "has no use with tls = false", name)
        if name and check_files and not (os.path.isfile(name) and os.access(name, os.R_OK)):
            raise document.wrong(("mqtt", key), "missing, or not readable for this user", name)


def _check_store(document: strict.Document, store: str) -> None:
    if re.search(r"//[^/?#]*:[^/?#]*@|[?&]password=", store):
        raise document.wrong(("store",), "holds a password; it belongs in store_password")
