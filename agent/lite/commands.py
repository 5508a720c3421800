"""`edge-ocr lite`: build the native binding, fetch its library, see whether it works."""

from __future__ import annotations

import platform
from pathlib import Path

import click

_BUNDLE = Path(f"models/build/ppocr-v4-{platform.machine()}-fp32")
_MODES = "any, high, low, full, some-high, some-low."


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


@lite_group.command("bench")
@click.option("--bundle", type=click.Path(path_type=Path), default=_BUNDLE, help="Models to run.")
@click.option("--threads", default="1", show_default=True, help="Numbers of threads, with commas between.")
@click.option("--power", default="any", show_default=True, help="Power modes, with commas between: " + _MODES)
@click.option("--runs", type=click.IntRange(1, 1000), default=15, show_default=True, help="Runs of each.")
def bench_command(bundle: Path, threads: str, power: str, runs: int) -> None:
    """Time the models on this machine: what threads and power modes are worth here."""
    from agent.bundle import ModelBundle
    from agent.lite.binding import open_library
    from agent.lite.measure import measure

    library = open_library()
    modes = power.split(",")
    rows = measure(library, ModelBundle.load(bundle), _numbers(threads), modes, runs)
    click.echo(f"Paddle Lite {library.version}, {library.machine}, {runs} runs each")
    click.echo("model  threads  power      median ms  fastest ms  peak MB")
    for row in rows:
        left = f"{row.model:5}  {row.threads:7}  {row.power_mode:9}"
        click.echo(f"{left}  {row.median_ms:9.1f}  {row.fastest_ms:10.1f}  {row.resident_mb:7.0f}")


def _numbers(text: str) -> list[int]:
    """Return numbers that stand with commas between.

    Raises:
        ConfigError: one is none, or not within 1..64.
    """
    from agent.errors import ConfigError

    words = text.split(",")
    if not all(word.isdecimal() and 1 <= int(word) <= 64 for word in words):
        raise ConfigError(f"--threads {text}: numbers from 1 to 64 with commas between are accepted")
    return [int(word) for word in words]
