"""The command line `edge-ocr`; the one place where errors become exit codes.

Importing this loads no vision package: `edge-ocr --help` stays instant on a slow board.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent import __version__
from agent.errors import AgentError, ConfigError, ExitCode, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.page import PageResult
    from agent.reader import ReaderSettings

_LAZY = {
    "run": ("agent.service", "run_command", "Run the agent: worker and uplink."),
    "worker": ("agent.service", "worker_command", "Run only the part that reads."),
    "uplink": ("agent.service", "uplink_command", "Run only the part that sends."),
    "collect": ("agent.service", "collect_command", "Store and confirm results at the centre."),
    "camera": ("agent.sources.camera.adjust", "camera_command", "Show what a camera's pictures measure."),
    "status": ("agent.service", "status_command", "Tell how the agent is."),
    "alive": ("agent.service", "alive_command", "Tell whether the agent makes progress."),
    "check": ("agent.service", "check_command", "Look whether the agent can work here."),
    "report": ("agent.service", "report_command", "Pack one file for a support ticket."),
    "scan": ("agent.service", "scan_command", "Have the agent scan pages."),
    "provision": ("agent.provision.commands", "provision_command", "Take settings and keys from a stick."),
    "units": ("agent.service", "units_command", "Print what the systemd units need for the settings."),
    "outbox": ("agent.service", "outbox_group", "Look at the results that wait here."),
    "convert": ("converters.__main__", "convert_command", "Convert PP-OCR models into a bundle."),
    "lite": ("agent.lite.commands", "lite_group", "Build and check the native binding on Paddle Lite."),
    "pack": ("agent.pack.commands", "pack_command", "Make a package for a box without network."),
    "bench": ("converters.bench", "bench_command", "Measure this reader beside RapidOCR."),
    "evaluate": ("converters.evaluate", "evaluate_command", "Compare bundles on labelled pictures."),
}


class _Commands(click.Group):
    """Finds a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_LAZY})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _LAZY:
            return super().get_command(ctx, cmd_name)
        module, attribute, short_help = _LAZY[cmd_name]
        if ctx.resilient_parsing or cmd_name not in sys.argv[1:2]:  # only its line in the list of commands is wanted
            return click.Command(cmd_name, short_help=short_help)
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="edge-ocr")
def cli() -> None:
    """Reads pages on small machines: photos and scans in, text out, inside a memory budget."""


@cli.command()
@click.argument("paths", metavar="FILE_OR_FOLDER...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "form", flag_value="json", help="One JSON row per page.")
@click.option("--text", "form", flag_value="text", default=True, help="Plain lines (default).")
@click.option("--overlay", type=click.Path(file_okay=False, path_type=Path), help="Write pictures with boxes there.")
@click.option("--bundle", type=click.Path(path_type=Path), envvar="EDGE_OCR_BUNDLE", help="Model bundle to use.")
@click.option("-c", "--config", type=click.Path(path_type=Path), help="Read as the agent with these settings does.")
@click.option("--memory-mb", type=click.IntRange(100, 65536), help="Memory limit. Default: 250, and 110 more a thread.")
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="Processor cores to use.")
@click.option("--engine", default="auto", show_default=True, help="paddlelite, onnxruntime, paddle or auto.")
def read(
    paths: tuple[Path, ...],
    form: str,
    overlay: Path | None,
    bundle: Path | None,
    config: Path | None,
    memory_mb: int | None,
    threads: int,
    engine: str,
) -> int:
    """Read the text of pictures and documents (PDF, TIFF): files, or all below a folder.

    Results are written as they come. A file that cannot be read gives one line on standard error and does not stop
    the others. Exit status: 0 all read, 1 some not read, 65 or 66 none read.
    """
    from agent.batch import find_pictures, read_files
    from agent.bundle import ModelBundle
    from agent.engines import EngineSettings
    from agent.memory import DEFAULT_MB, DEFAULT_MB_PER_MATE
    from agent.reader import Reader, ReaderSettings
    from agent.trial import ensure_tried

    files = find_pictures(paths)
    if not files:
        raise InputError(f"no pictures below {', '.join(str(p) for p in paths)}")
    if overlay is not None:
        _make_folder(overlay)
    if config is not None:
        place, settings = _configured(config)
    else:
        limit = memory_mb or DEFAULT_MB + DEFAULT_MB_PER_MATE * (threads - 1)
        place, settings = _default_bundle(), ReaderSettings(memory_mb=limit, engine=EngineSettings(engine, threads))
    verified = ModelBundle.load(bundle or place)
    ensure_tried(verified, settings.engine)
    reader = Reader(verified, settings)
    try:
        return _stream(read_files(reader, files, overlay), form, len(files))
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nothing is wrong, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    finally:
        reader.close()


def _configured(config: Path) -> tuple[Path, ReaderSettings]:
    """Return where the bundle of an agent's settings is, and how it reads."""
    from agent.config import AgentConfig, load
    from agent.openers import reader_settings

    given = load(config, AgentConfig, check_files=False)
    return Path(given.reader.bundle), reader_settings(given)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--overlay {path}: {error.strerror}") from error


def _default_bundle() -> Path:
    """Return where the default bundle is: in the release that this program is of, below this folder or the checkout."""
    released = Path(sys.prefix).parent / "bundle"
    if (released / "bundle.toml").exists():
        return released
    place = Path("models/build") / f"ppocr-v4-{platform.machine()}-fp32"
    checkout = Path(__file__).parent.parent / place
    return checkout if not place.exists() and checkout.exists() else place


def _stream(results: Iterator[tuple[PageResult, ExitCode]], form: str, count: int) -> int:
    """Write results as they come and return the exit status of all together."""
    codes, done = [], 0
    bar = _Bar(count)
    for page, code in results:
        codes.append(code)
        done += page.page == page.pages  # the last one of a document, or a picture
        bar.clear()
        _write(page, form, several=count > 1)
        bar.show(done)
    bar.clear()
    failed = [code for code in codes if code is not ExitCode.OK]
    if not failed:
        return ExitCode.OK
    return failed[0] if len(failed) == len(codes) else ExitCode.SOME_FAILED


def _write(page: PageResult, form: str, *, several: bool) -> None:
    from agent.page import to_json

    if page.error is not None:
        click.echo(f"edge-ocr: {page.error}", err=True)
    if form == "json":
        click.echo(to_json(page))
    elif page.error is None:
        which = f", page {page.page} of {page.pages}" if page.pages else ""
        several = several or page.pages > 1
        heading = [f"==> {page.image}{which} <=="] if several else []
        click.echo("\n".join([*heading, *(line.text for line in page.lines), *([""] if several else [])]))
    sys.stdout.flush()


class _Bar:
    """A progress bar on a terminal's last line, when there are many files."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.shown = count > 3 and sys.stderr.isatty()

    def show(self, done: int) -> None:
        if self.shown:
            full = 30 * done // self.count
            click.echo(f"[{'#' * full}{'.' * (30 - full)}] {done}/{self.count} files", err=True, nl=False)

    def clear(self) -> None:
        if self.shown:
            click.echo("\r\033[K", err=True, nl=False)


def main() -> None:
    """Run the command line and exit with its status."""
    # numpy's OpenBLAS starts a thread for every core and spins in it; nothing here multiplies with it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # numpy asks for large memory pages for arrays of 4 MB, and the heap around them stays in such: 12 MB more at rest.
    os.environ.setdefault("NUMPY_MADVISE_HUGEPAGE", "0")
    try:
        status = cli.main(standalone_mode=False, prog_name="edge-ocr")
    except AgentError as error:
        click.echo(f"edge-ocr: {error}", err=True)
        status = error.code
    except click.exceptions.Exit as leaving:
        status = leaving.exit_code
    except click.ClickException as error:
        error.show()
        status = ExitCode.USAGE
    except (click.Abort, KeyboardInterrupt):
        status = ExitCode.INTERRUPTED
    except Exception as error:
        traceback.print_exc()
        click.echo(f"edge-ocr: a defect of this program, please report it ({type(error).__name__}: {error})", err=True)
        status = ExitCode.SOFTWARE
    sys.exit(int(status or 0))


if __name__ == "__main__":
    main()
