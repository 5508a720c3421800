"""`edge-ocr camera`: shows what the gate measures, to set its limits by, and to see why a page is not taken."""

from __future__ import annotations

import select
from pathlib import Path

import click
import msgspec

from agent.clock import Clock
from agent.config import AgentConfig, load
from agent.errors import ConfigError, InputError
from agent.source_config import CameraConfig
from agent.sources.camera.device import Process, limits_of, task_of, unstable
from agent.sources.camera.glance import Glance, Limits, State
from agent.sources.camera.source import OPEN_S, SILENT_S

LINE_S = 1.0

_MEANINGS: dict[State, str] = {
    "opening": "the device is being opened",
    "moving": "something moves",
    "waiting": "still, but not long enough, or the lens is focusing",
    "black": "the picture is black",
    "empty": "nothing that looks like writing",
    "blurred": "a page that is not sharp",
    "known": "the page that was taken last",
    "ready": "a new page: it would be taken now",
    "lost": "the device is gone",
    "ended": "the film is at its end",
}


@click.command("camera")
@click.argument("name")
@click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default=Path("/etc/edge-ocr/agent.toml"),
    envvar="EDGE_OCR_CONFIG",
    show_default=True,
    help="Settings, TOML.",
)
@click.option("--shot", type=click.Path(dir_okay=False, path_type=Path), help="Write the first picture there, as PNG.")
@click.option("--seconds", type=click.IntRange(1), help="End after so long; default: with control-C.")
def camera_command(name: str, path: Path, shot: Path | None, seconds: int | None) -> None:
    """Show live what is measured in the pictures of the camera NAME, a line a second; nothing is taken.

    Each measure stands beside its limit from the settings. The worker must have let go of a V4L2 device.
    """
    config = _camera(load(path, AgentConfig, check_files=False), name)
    if said := unstable(config.device):
        click.echo(said, err=True)
    if shot is not None and (shot.suffix.lower() != ".png" or not shot.absolute().parent.is_dir()):
        raise InputError(f"{shot}: must end with .png, in a folder that is there")
    shown = "" if shot is None else str(shot.absolute())
    process = Process(msgspec.structs.replace(task_of(config), shot=shown))
    try:
        _show(process, config, seconds)
    finally:
        process.close()


def _camera(config: AgentConfig, name: str) -> CameraConfig:
    cameras = [source for source in config.source if isinstance(source, CameraConfig)]
    for source in cameras:
        if source.name == name:
            return source
    known = ", ".join(source.name for source in cameras) or "none"
    raise ConfigError(f"no camera {name} in the settings; there is: {known}")


def _show(process: Process, config: CameraConfig, seconds: int | None) -> None:
    """Print glances until the time is over or the device ends."""
    clock, limits = Clock(), limits_of(config)
    began = heard_at = clock.monotonic()
    click.echo("picture      brightness  motion %     sharpness    text %       change %     state")
    opening, shown, shown_at = True, "", 0.0
    while seconds is None or clock.monotonic() - began < seconds:
        select.select([process.fileno()], [], [], 0.5)
        for glance in process.glances():
            heard_at, opening = clock.monotonic(), glance.state == "opening"
            if glance.state == "lost":
                raise InputError(glance.said)
            if not opening and (glance.state != shown or heard_at - shown_at >= LINE_S):
                shown, shown_at = glance.state, heard_at
                click.echo(row(glance, limits))
            if glance.state == "ended":
                return
        if clock.monotonic() - heard_at > (OPEN_S if opening else SILENT_S) or process.ended():
            raise InputError(f"{config.device}: gives no pictures; is it on, and does no other program have it?")


def row(glance: Glance, limits: Limits) -> str:
    """Return a glance as a line: each measure with its limit."""
    cells = (
        f"{glance.width}x{glance.height}".ljust(12),
        f"{glance.brightness:.0f} >{limits.black:.0f}".ljust(11),
        f"{glance.motion:.1f} <={limits.motion:g}".ljust(12),
        f"{glance.sharpness:.0f} >={limits.sharpness:g}".ljust(12),
        f"{glance.text:.2f} >={limits.text:g}".ljust(12),
        f"{glance.change:.0f} >={limits.change:g}".ljust(12),
    )
    return " ".join((*cells, f"{glance.state}: {_MEANINGS.get(glance.state, '')}"))
