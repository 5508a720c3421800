"""Temperature, and whether the processor is held back: by heat, by a weak power supply, or by a setting.

Names are those of the kernel's Documentation/driver-api/thermal/sysfs-api.rst and admin-guide/pm/cpufreq.rst; that of
Raspberry Pi's firmware is in its own kernel alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent.check.finding import Finding, Subject, first_line, number

NEAR_C = 5.0
"""So near to the point where the kernel slows the processor down."""
_COOL = "give it air, a heat sink or shade; pages take longer until then"
_FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"
_PI_NOW = {0: "the voltage is too low", 1: "its frequency is capped", 2: "it is throttled", 3: "it is near its limit"}
_POWER = "use the power supply made for the board, and a short cable: low voltage also breaks memory cards"


class Zone(msgspec.Struct, frozen=True):
    """A thermal zone: its name, temperature and trip points in degrees Celsius; None where it tells none."""

    name: str
    now_c: float
    passive_c: float | None
    critical_c: float | None


def look(subject: Subject) -> Iterator[Finding]:
    """Look at temperatures, frequencies and what the firmware says."""
    found = [*_zones(subject.root), *_slowed(subject.root), *_pi(subject.root)]
    yield from found or [Finding("ok", "temperature", "nothing to read here")]


def _zones(root: Path) -> Iterator[Finding]:
    zones = [zone for folder in sorted((root / "sys/class/thermal").glob("thermal_zone*")) if (zone := _zone(folder))]
    for zone in zones:
        if zone.critical_c is not None and zone.now_c >= zone.critical_c - NEAR_C:
            said = f"{zone.name}: {zone.now_c:.0f} °C; the system switches itself off at {zone.critical_c:.0f}"
            yield Finding("fail", "temperature", said, _COOL)
        elif zone.passive_c is not None and zone.now_c >= zone.passive_c - NEAR_C:
            said = f"{zone.name}: {zone.now_c:.0f} °C; from {zone.passive_c:.0f} on the system slows it down"
            yield Finding("warn", "temperature", said, _COOL)
    if zones:
        hottest = max(zones, key=lambda zone: zone.now_c)
        yield Finding("ok", "temperature", f"{hottest.name}: {hottest.now_c:.0f} °C, the hottest of {len(zones)}")


def _zone(folder: Path) -> Zone | None:
    now = number(folder / "temp")  # millidegrees; zones that are switched off have no number, or one from nowhere
    if now is None or not -40_000 < now < 200_000:
        return None
    trips: dict[str, list[float]] = {}
    for kind in folder.glob("trip_point_*_type"):
        at = number(kind.with_name(kind.name.replace("_type", "_temp")))
        if at is not None and at > 0:
            trips.setdefault(first_line(kind), []).append(at / 1000)
    passive, critical = (min(trips.get(name, []), default=None) for name in ("passive", "critical"))
    return Zone(first_line(folder / "type") or folder.name, now / 1000, passive, critical)


def _slowed(root: Path) -> Iterator[Finding]:
    """Say when processors may not run as fast as they could: heat lowers the upper limit of their policy."""
    told, slow = [], False
    for policy in sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*")):
        most, can = number(policy / "scaling_max_freq"), number(policy / "cpuinfo_max_freq")
        now = number(policy / "scaling_cur_freq")
        if most is None or can is None or can <= 0:
            continue
        slow = slow or most < can * 0.95
        told.append(f"{policy.name} {(now or most) / 1e6:.2f} GHz, may {most / 1e6:.2f} of {can / 1e6:.2f}")
    if slow:
        advice = f"heat, or a power mode (Jetson: `nvpmodel -q`; else scaling_max_freq), holds it back; {_COOL}"
        yield Finding("warn", "processor", "; ".join(told), advice)
    elif told:
        yield Finding("ok", "processor", "; ".join(told))


def _pi(root: Path) -> Iterator[Finding]:
    """Say what a Raspberry Pi's firmware holds against it: low bits are now, those 16 higher since the start."""
    said = first_line(root / _FIRMWARE)
    try:
        bits = int(said, 16)
    except ValueError:
        return
    now = [what for bit, what in _PI_NOW.items() if bits >> bit & 1]
    before = [what for bit, what in _PI_NOW.items() if bits >> bit + 16 & 1]
    advice = _POWER if bits & 0x1_0001 else _COOL
    if now:
        yield Finding("warn", "processor", f"the firmware says: {', '.join(now)}", advice)
    elif before:
        yield Finding(
            "warn", "processor", f"the firmware says, of some time since the start: {', '.join(before)}", advice
        )
