"""`edge-ocr pack`: makes one file that installs the agent on a box without network."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from agent.pack.plan import PYTHONS, TARGETS


@click.command("pack")
@click.option("--target", type=click.Choice(TARGETS), required=True, help="Processor of the box.")
@click.option(
    "--python", type=click.Choice(PYTHONS), required=True, help="Its Python: Ubuntu 22.04 3.10, Debian 12 3.11."
)
@click.option("--bundle", type=click.Path(path_type=Path), required=True, help="Models, from `edge-ocr convert`.")
@click.option("--config", type=click.Path(path_type=Path), help="Settings of a new box. Default: systemd/agent.toml.")
@click.option("--lite-lib", type=click.Path(path_type=Path), help="Release archive of Paddle Lite's C++ library.")
@click.option("--wheel", type=click.Path(path_type=Path), help="Wheel of Paddle Lite's Python package.")
@click.option("--deb", is_flag=True, help="Write a Debian package as well, beside the other.")
@click.option("--level", type=click.IntRange(0, 9), default=9, show_default=True, help="Compression; 0 is fast.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Default: edge-ocr-VERSION-TARGET.run."
)
def pack_command(
    target: str,
    python: str,
    bundle: Path,
    config: Path | None,
    lite_lib: Path | None,
    wheel: Path | None,
    deb: bool,
    level: int,
    output: Path | None,
) -> None:
    """Make a package that installs the agent on a box without network.

    The same inputs give the same bytes; SOURCE_DATE_EPOCH is the time of its files.
    """
    from agent import __version__
    from agent.pack import made, plan

    order = plan.Order(target, python, bundle, config, lite_lib, wheel)
    place = output or Path(f"edge-ocr-{__version__}-{target}.run")
    for line in made.make(plan.make(order), made.Wanted(place, level, deb), _progress):
        click.echo(line)


def _progress(what: str, share: float) -> None:
    """Show how far a step is, on a terminal."""
    if sys.stderr.isatty():
        end = "\r\033[K" if share >= 1 else ""
        click.echo(f"\r{what} {share:4.0%}{end}", err=True, nl=False)
