"""`edge-ocr provision`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("provision")
@click.option("--from", "source", type=click.Path(path_type=Path), help="File, folder or partition to take it from.")
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    default="/etc/edge-ocr/agent.toml",
    envvar="EDGE_OCR_CONFIG",
    show_default=True,
    help="Settings to write; keys and what is remembered lie beside.",
)
@click.option(
    "--units",
    type=click.Path(file_okay=False, path_type=Path),
    default="/etc/systemd/system",
    show_default=True,
    help="Folder of units to write drop-ins to.",
)
@click.option("--dry-run", is_flag=True, help="Only look, and print what would be written.")
@click.option("--wait", type=click.IntRange(0, 300), default=0, help="Seconds to wait for a stick to appear.")
def provision_command(source: Path | None, config: Path, units: Path, dry_run: bool, wait: int) -> None:
    """Take settings, certificates and keys from edge-ocr.toml on a stick or the boot partition, once.

    Without --from media are looked at only while the box has no settings of its own. All is checked before anything is
    written, and what is wrong changes nothing.

    Exit status: 0 applied, or nothing to do; 78 the file is wrong, 66 it is missing, 75 it cannot be written.
    """
    from agent.errors import ConfigError
    from agent.provision import apply, identity
    from agent.provision.box import Box

    who = identity.read()
    if dry_run:
        if source is None:
            raise ConfigError("--dry-run needs --from: the file, folder or partition to look at")
        click.echo("\n".join(apply.look(who, source)))
        return
    box = Box(config.absolute(), units.absolute())
    click.echo(apply.search(box, who, wait) if source is None else apply.given(box, who, source))
