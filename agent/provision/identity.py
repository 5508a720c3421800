"""Which box this is: by its serial number, or by the addresses of its network devices."""

from __future__ import annotations

import re
from pathlib import Path

from msgspec import Struct

_SERIALS = ("proc/device-tree/serial-number", "sys/class/dmi/id/product_serial")
_NONE = {"", "none", "n/a", "na", "unknown", "invalid", "tobefilledbyoem", "defaultstring", "systemserialnumber"}
_NONE |= {"notspecified", "notapplicable", "notavailable", "oem", "serialnumber", "123456789", "1234567890"}
"""What boards without a serial number say instead, in `_plain` letters."""
_ETHERNET = "1"  # linux/if_arp.h


class Identity(Struct, frozen=True):
    """What tells this box from the others.

    Attributes:
        serial: the board's serial number, "" where it has none.
        macs: addresses of its own network devices, such as "02:00:5e:10:00:01".
    """

    serial: str
    macs: tuple[str, ...]

    @property
    def device(self) -> str:
        """The name that the box has when its settings say none; "" where nothing tells it from others."""
        name = self.serial or (_plain(self.macs[0]) if self.macs else "")
        return ("edge-" + re.sub(r"[^A-Za-z0-9_.-]+", "-", name))[:64] if name else ""

    def owns(self, name: str) -> bool:
        """Tell whether a name is the serial number or an address; case, spaces, ":" and "-" do not count."""
        return _plain(name) in {_plain(own) for own in (self.serial, *self.macs) if own}

    def __str__(self) -> str:
        parts = [f"serial number {self.serial}" if self.serial else "no serial number"]
        return ", ".join([*parts, *(f"MAC {mac}" for mac in self.macs)])


def read(root: Path = Path("/")) -> Identity:
    """Return who this box is, by the files that the system has about it."""
    return Identity(next(filter(None, (_serial(root / name) for name in _SERIALS)), ""), tuple(_macs(root)))


def _serial(path: Path) -> str:
    text = _text(path)
    plain = _plain(text)
    return text if plain not in _NONE and len(set(plain)) > 1 else ""  # 0000 is none


def _macs(root: Path) -> list[str]:
    """Return the addresses of devices that are hardware; bridges, tunnels and containers' are not."""
    found = []
    for device in sorted((root / "sys/class/net").glob("*")):
        address = _text(device / "address")
        if (device / "device").exists() and _text(device / "type") == _ETHERNET and address.strip("0:"):
            found.append(address.lower())
    return found


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="ascii", errors="ignore")
    except OSError:  # none, or not for this user
        return ""
    return "".join(letter for letter in text if letter.isprintable()).strip()


def _plain(name: str) -> str:
    return re.sub(r"[\s:.-]", "", name).lower()
