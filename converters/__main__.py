"""`python -m converters`, also `edge-ocr convert`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click

from agent.errors import AgentError, EngineError, ExitCode

TARGETS = ("x86_64", "aarch64", "portable", "paddle")


@click.command("convert")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--target", type=click.Choice(TARGETS), required=True, help="Machines the bundle is for.")
@click.option("--precision", type=click.Choice(("fp32", "int8")), help="Default: int8 for aarch64 if the recipe can.")
@click.option("--source", type=click.Path(path_type=Path), help="Directory with PP-OCR models of your own.")
@click.option("--characters", type=click.Path(path_type=Path), help="Dictionary of your own recogniser.")
@click.option("--output", type=click.Path(path_type=Path), help="Directory of the bundle; default below models/build.")
@click.option("--labels", type=click.Path(path_type=Path), multiple=True, help="Judge int8 on your pages too.")
@click.option("--images", type=click.Path(path_type=Path), help="Your own scans: calibrate int8 on them too.")
@click.option("--measure/--no-measure", "measured", default=True, help="Time the models and print the table.")
@click.option("--force", is_flag=True, help="Do every stage again.")
def convert_command(**options: object) -> None:
    """Make a model bundle from RECIPE, such as models/ppocr-v4.toml."""
    try:
        from converters.export import Request, convert
        from converters.meter import Meter
    except ModuleNotFoundError as error:  # on a box, say, whose package has none of it
        raise EngineError(
            f"{error.name} is missing: pip install 'edge-ocr-agent[convert]', and not on the box"
        ) from error

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else a job's temporary files would stay
    try:
        convert(Request(**options), click.echo, Meter(sys.stderr))  # type: ignore[arg-type]
    except KeyboardInterrupt:
        click.echo("\nstopped; stages that are done are kept: the same command goes on from there", err=True)
        raise


def main() -> None:
    """Run the command; an error is one line and an exit status."""
    try:
        convert_command(prog_name="python -m converters", standalone_mode=False)
    except AgentError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.code)
    except click.ClickException as error:
        error.show()
        sys.exit(ExitCode.USAGE)
    except click.Abort:
        sys.exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    main()
