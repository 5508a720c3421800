"""What a medium brings besides settings: certificates, keys and passwords, each for one unit's eyes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from agent import config, strict
from agent.config import AgentConfig
from agent.errors import ConfigError
from agent.provision import folder, pem
from agent.provision.papers import Merged, Part
from agent.setting_types import DeviceName, Strict

UPLINK, WORKER = "edge-ocr-uplink.service", "edge-ocr-worker.service"
_CREDENTIALS = f"/run/credentials/{UPLINK}"
_FILES = {"ca": ("ca_file", "ca.pem"), "certificate": ("cert_file", "cert.pem"), "key": ("key_file", "key.pem")}
"""For each setting of [provision] the one of [mqtt] that it makes, and the name of the credential."""
_PASSWORD = "password"

_HIDDEN = {"secret": True}
Pem = Annotated[
    str,
    Meta(min_length=1, description="the name of a file beside this one, or PEM text in quotes", extra=_HIDDEN),
]
Text = Annotated[
    str,
    Meta(pattern=r"^[^\x00-\x1f\x7f]{1,1000}\Z", description="the text itself in quotes, of one line", extra=_HIDDEN),
]


class CredentialConfig(Strict, frozen=True):
    """A secret that is none of the broker's.

    Attributes:
        name: what `credential:NAME` in the settings has.
        text: the secret.
    """

    name: Annotated[
        str,
        Meta(pattern=r"^(?!password\Z)[A-Za-z0-9_-]{1,64}\Z", description='1 to 64 of A-Z a-z 0-9 _ -, not "password"'),
    ]
    text: Text


class ProvisionConfig(Strict, frozen=True):
    """What a medium brings besides settings.

    Attributes:
        ca: certificates that may sign the broker's.
        certificate: this box's.
        key: its key.
        password: at the broker.
        password_file: or the name of a file with it.
        credential: other secrets.
        remove: whether secrets and files of this box alone are taken from the medium when they are applied.
        again: whether changed files are taken later, too.
    """

    ca: Pem | None = None
    certificate: Pem | None = None
    key: Pem | None = None
    password: Text | None = None
    password_file: str = ""
    credential: tuple[CredentialConfig, ...] = ()
    remove: bool = True
    again: bool = False


class MediumConfig(AgentConfig, frozen=True):
    """The settings of a box, as a medium brings them.

    Attributes:
        device: as in the settings; by default it is made of the serial number.
        provision: what else it brings.
    """

    device: DeviceName = ""
    provision: ProvisionConfig = ProvisionConfig()


class Key(Struct, frozen=True):
    """A secret, or a certificate.

    Attributes:
        name: of the credential, and of its file.
        unit: the only one that sees it.
        content: the bytes.
    """

    name: str
    unit: str
    content: bytes


class Files:
    """What [provision] names: read from beside the file, or taken from it.

    Attributes:
        raw: the files beside that were read.
        secret: those of them that are secrets, and who names them.
        inline: the files with secrets in them.
        makes: settings of [mqtt] that come of it.
    """

    def __init__(self, place: Path, document: Merged, asked: ProvisionConfig) -> None:
        """Read nothing yet.

        Args:
            place: the medium's folder.
            document: the files.
            asked: their part about keys.
        """
        self._place = place
        self._document = document
        self._asked = asked
        self.raw: dict[str, bytes] = {}
        self.secret: dict[str, Part] = {}
        self.inline: list[Part] = []
        self.makes: dict[str, str] = {}

    def broker(self, asked: MediumConfig) -> list[Key]:
        """Return certificates, key and password for the broker.

        Raises:
            ConfigError: one is none, or has no use.
        """
        found = {name: content for name in _FILES if (content := self._pem(name)) is not None}
        self._check(found)
        for name in found:
            setting, credential = _FILES[name]
            self._make(asked, name, setting, f"{_CREDENTIALS}/{credential}")
        keys = [Key(_FILES[name][1], UPLINK, content) for name, content in found.items()]
        if (password := self._password()) is not None:
            by = _PASSWORD if self._asked.password is not None else "password_file"
            self._make(asked, by, _PASSWORD, f"credential:{_PASSWORD}")
            keys.append(Key(_PASSWORD, UPLINK, password))
        return keys

    def _make(self, asked: MediumConfig, name: str, setting: str, value: str) -> None:
        if asked.mqtt is None:
            raise self._wrong((name,), "is for the broker, and there is no [mqtt]")
        if setting in self._document.table["mqtt"]:
            why = f"is one too many beside [provision] {name}, which makes it; leave one out"
            raise self._document.wrong(("mqtt", setting), why)
        self.makes[setting] = value

    def credentials(self, asked: MediumConfig) -> list[Key]:
        """Return other secrets, each for the unit whose settings name it.

        Raises:
            ConfigError: no setting names one.
        """
        worker = {getattr(source, name, None) for source in asked.source for name in ("password", "token")}
        uplink = {asked.mqtt.password} if asked.mqtt else set()
        keys: list[Key] = []
        for number, one in enumerate(self._asked.credential):
            where = f"credential:{one.name}"
            if where not in worker | uplink or one.name in (key.name for key in keys):
                why = f'is given twice, or no setting is "{where}"'
                raise self._wrong(("credential", number, "name"), why, one.name)
            keys.append(Key(one.name, WORKER if where in worker else UPLINK, one.text.encode()))
            self._say_inline(("credential", number))
        return keys

    def _pem(self, name: str) -> bytes | None:
        said: str | None = getattr(self._asked, name)
        if said is None:
            return None
        if "-----BEGIN" in said:
            if name == "key":
                self._say_inline((name,))
            return said.strip().encode() + b"\n"
        return self._file(name, said, secret=name == "key")

    def _password(self) -> bytes | None:
        asked = self._asked
        if asked.password is not None and asked.password_file:
            raise self._wrong(("password_file",), "is one too many beside password; leave one out")
        if asked.password is not None:
            self._say_inline(("password",))
            return asked.password.encode()
        if not asked.password_file:
            return None
        text = self._file("password_file", asked.password_file, secret=True).rstrip(b"\r\n")
        if not text or b"\n" in text or b"\0" in text or len(text) > config.MAX_SECRET_BYTES:
            raise self._wrong(("password_file",), "must hold one line, the password", asked.password_file)
        return text

    def _file(self, key: str, name: str, *, secret: bool) -> bytes:
        part = self._document.part(("provision", key))
        whole = part.beside(name)
        try:
            self.raw[whole] = folder.read(self._place, whole, config.MAX_SECRET_BYTES)
        except ConfigError as error:
            raise self._wrong((key,), str(error), name) from error
        if secret:
            self.secret[whole] = part
        return self.raw[whole]

    def _check(self, found: dict[str, bytes]) -> None:
        for name, other in (("certificate", "key"), ("key", "certificate")):
            if name in found and other not in found:
                raise self._wrong((name,), f"needs {other} too")
        try:
            if "ca" in found:
                pem.check_authorities(found["ca"])
        except ConfigError as error:
            raise self._wrong(("ca",), str(error)) from error
        try:
            if "certificate" in found:
                pem.check_pair(found["certificate"], found["key"])
        except ConfigError as error:
            raise self._wrong(("certificate",), str(error)) from error

    def _say_inline(self, at: strict.At) -> None:
        self.inline.append(self._document.part(("provision", *at)))

    def _wrong(self, at: strict.At, why: str, value: object = None) -> ConfigError:
        return self._document.wrong(("provision", *at), why, value)
