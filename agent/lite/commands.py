"""`edge-ocr lite`: build the native binding, fetch its library, see whether it works."""

from __future__ import annotations

import platform
from pathlib import Path

import click


@click.group("lite")
def lite_group() -> None:
    """Build and check the native binding on Paddle Lite's C++ library."""


@lite_group.command("build")
@click.option("--lib", type=click.Path(path_type=Path), help="Release archive, its directory, or the library.")
@click.option(
    "--target", type=click.Choice(["x86_64", "aarch64"]), default=platform.machine(), help="Default: this machine."
)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Directory. Default: the cache.")
@click.option("--accept", multiple=True, metavar="VERSION", help="Take a library of this version although unknown.")
def build_command(lib: Path | None, target: str, output: Path | None, accept: tuple[str, ...]) -> None:
    """Compile the binding for Paddle Lite's library, with the system's C++ compiler."""
    from agent.lite.build import build
    from agent.lite.place import read_build

    folder = build(lib, target, output, accept)
    record = read_build(folder)
    click.echo(f"built     {folder}")
    click.echo(f"library   {record.library}, {record.library_bytes} bytes")
    click.echo(f"with      {record.compiler}, {'the release headers' if record.headers else 'own declarations'}")
    if record.version:
        click.echo(f"tested    Paddle Lite {record.version}: loads, and calculates what it should; now in use")
    else:
        click.echo(f"tested    not, this machine is no {target}: copy it there and run `edge-ocr lite check DIR`")


@lite_group.command("check")
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(file_okay=False, path_type=Path))
def check_command(folder: Path | None) -> None:
    """Try a build, by default the one in use, and use it from now on."""
    from agent.errors import EngineError
    from agent.lite.build import check
    from agent.lite.place import chosen

    folder = folder or chosen()
    if folder is None:
        raise EngineError("the native binding is not built: run `edge-ocr lite build`")
    click.echo(f"{folder}: Paddle Lite {check(folder)}: loads, and calculates what it should; now in use")


@lite_group.command("fetch")
def fetch_command() -> None:
    """Fetch the x86 library with pip, for Python 3.11 and newer."""
    from agent.lite.library import fetch

    click.echo(fetch())
