"""The commands of the long-running programs, and those that look at what they have done."""

from __future__ import annotations

import datetime
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, TypeVar

import click
import msgspec

from agent import durable
from agent.config import AgentConfig, CollectorConfig, load
from agent.errors import ExitCode, InputError
from agent.health import Role
from agent.outbox import Outbox, Row

STATES = ("pending", "brokered", "stored", "dead")

CONFIG = Path("/etc/edge-ocr/agent.toml")
COLLECTOR_CONFIG = Path("/etc/edge-ocr/collector.toml")


F = TypeVar("F", bound=Callable[..., Any])


def _config_option(default: Path) -> Callable[[F], F]:
    return click.option(
        "-c",
        "--config",
        "path",
        type=click.Path(path_type=Path),
        default=default,
        envvar="EDGE_OCR_CONFIG",
        show_default=True,
        help="Settings, TOML.",
    )


@click.command("run")
@_config_option(CONFIG)
def run_command(path: Path) -> int:
    """Run the agent: a worker that reads and an uplink that sends, started again when they end.

    Without [mqtt] in the settings results stay in the outbox. SIGTERM or control-C ends both; the page at hand is
    finished first.
    """
    from agent import supervise

    return supervise.run(load(path, AgentConfig), path)


@click.command("worker")
@_config_option(CONFIG)
def worker_command(path: Path) -> None:
    """Run only the worker: reads pages into the outbox, opens no network connection."""
    from agent import heap

    config = load(path, AgentConfig, check_files=False)  # keys are the uplink's to read
    if config.memory.large_pages:
        heap.use_large_pages()  # first: what is imported below would be for nothing
    from agent import worker

    worker.run(config)


@click.command("uplink")
@_config_option(CONFIG)
def uplink_command(path: Path) -> None:
    """Run only the uplink: sends results from the outbox, opens no picture."""
    from agent import uplink

    uplink.run(load(path, AgentConfig))


@click.command("collect")
@_config_option(COLLECTOR_CONFIG)
@click.option("--print", "printing", is_flag=True, help="Print each row as it is stored.")
def collect_command(path: Path, printing: bool) -> None:
    """Run a collector: stores the results of all devices and confirms them."""
    from agent import collect

    collect.run(load(path, CollectorConfig), printing=printing)


@click.command("status")
@_config_option(CONFIG)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status_command(path: Path, as_json: bool) -> int:
    """Tell how the agent is: what waits, what went, what should be looked at.

    Exit status: 0 all is well, 1 something should be looked at.
    """
    from agent import status

    told = status.make(load(path, AgentConfig, check_files=False))
    click.echo(msgspec.json.encode(told).decode() if as_json else "\n".join(status.lines(told)))
    return ExitCode.OK if told.ok else ExitCode.SOME_FAILED


@click.command("alive")
@_config_option(CONFIG)
@click.argument("role", type=click.Choice(("worker", "uplink")), required=False)
@click.option("--end", "ending", is_flag=True, help="End a program that hangs, so that it is started again.")
def alive_command(path: Path, role: Role | None, ending: bool) -> int:
    """Tell whether worker and uplink make progress: the health check of a container. Takes a tenth of a second.

    Exit status: 0 they do, 1 one does not run, has just started or hangs.
    """
    from agent import alive

    config = load(path, AgentConfig, check_files=False)
    state_dir = Path(config.state_dir)
    roles: tuple[Role, ...] = ("worker", "uplink") if config.mqtt is not None else ("worker",)
    signs = [alive.look(state_dir, one) for one in ((role,) if role else roles)]
    click.echo("\n".join(sign.said for sign in signs))
    for sign in signs:
        if ending and sign.hangs:
            ended = alive.end(sign, state_dir)
            click.echo(f"edge-ocr: {sign.role}: {'was ended' if ended else 'cannot be ended'}", err=True)
    return ExitCode.OK if all(sign.well for sign in signs) else ExitCode.SOME_FAILED


@click.command("check")
@_config_option(CONFIG)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def check_command(path: Path, as_json: bool) -> int:
    """Look whether the agent can work here: settings, rights, disks, models, sources, broker, units, machine.

    Nothing is changed, no paper is fed and no program of the agent is disturbed. As root it also looks with the eyes of
    the user whom the state belongs to. It takes less than ten seconds, whatever hangs.
    Exit status: 0 it can, perhaps with warnings; 1 something fails; 78 the settings are wrong.
    """
    from agent.check import doctor, finding

    findings = doctor.make(path, _tell if sys.stderr.isatty() else None)
    _tell(())
    click.echo(finding.to_json(findings) if as_json else "\n".join(finding.lines(findings)))
    return finding.status(findings)


def _tell(left: Sequence[str]) -> None:
    """Say on a terminal what is still looked at."""
    if sys.stderr.isatty():
        said = f"looking at {', '.join(left)}"[: (shutil.get_terminal_size().columns or 80) - 1] if left else ""
        click.echo(f"\r\033[K{said}", err=True, nl=False)


@click.command("report")
@_config_option(CONFIG)
@click.option("-o", "--output", help="File, or - for standard output. Default: a new one in this folder.")
@click.option("--log", "logs", multiple=True, type=click.Path(path_type=Path), help="Log file besides the journal.")
def report_command(path: Path, output: str | None, logs: tuple[Path, ...]) -> None:
    """Pack one file for a support ticket: check, status, settings, versions, logs. No text, picture, key or password.

    It also works where half of the machine does not. As root it has more to tell.
    """
    from agent.report import archive

    told = archive.make(path, logs, _tell if sys.stderr.isatty() else None)
    _tell(())
    if output == "-":
        sys.stdout.buffer.write(told.packed)
    else:
        written = archive.write(told, Path(output) if output else None)
        click.echo(f"{written}: {len(told.packed) >> 10} kB; look into it before you send it")
    click.echo("\n".join(f"  {line}" for line in told.lines), err=output == "-")


@click.command("scan")
@_config_option(CONFIG)
@click.argument("name", default="")
@click.option("--pages", type=click.IntRange(1, 10_000), help="At most so many. Default: one; from a feeder all.")
@click.option("--wait", is_flag=True, help="Wait until they are scanned, and tell what came of it.")
def scan_command(path: Path, name: str, pages: int | None, wait: bool) -> int:
    """Have a running agent scan pages. NAME is that of the source; it can be left out where there is one scanner.

    Exit status: 0 scanned, or ordered without --wait; 1 not all pages, 75 none, and what to do at the scanner.
    """
    from agent import scan

    order = scan.give(load(path, AgentConfig, check_files=False), name, pages or 0)
    if not wait:
        click.echo(f"{order.source}: ordered")
        return ExitCode.OK
    answer = order.wait()
    click.echo(f"{order.source}: {answer.pages} {'page' if answer.pages == 1 else 'pages'} scanned")
    if answer.fault:
        click.echo(f"edge-ocr: {answer.fault}", err=True)
    return ExitCode.OK if not answer.fault else ExitCode.SOME_FAILED if answer.pages else ExitCode.TEMPORARY


@click.command("units")
@_config_option(CONFIG)
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder of units to write to.")
def units_command(path: Path, output: Path | None) -> None:
    """Print what the systemd units must be told of the settings: memory, folders, devices, the broker's address.

    With --output /etc/systemd/system the drop-ins are written; `systemctl daemon-reload` follows.
    """
    from agent import units

    config = load(path, AgentConfig, check_files=False)
    if output is not None:
        click.echo("\n".join(str(written) for written in units.write(config, output)))
        return
    for unit, text in units.drop_ins(config).items():
        click.echo(f"# {unit}.d/{units.NAME}\n{text}")


@click.group("outbox")
def outbox_group() -> None:
    """Look at the results that wait on this machine."""


def _open(path: Path) -> Outbox:
    config = load(path, AgentConfig, check_files=False)
    state_dir = Path(config.state_dir)
    if not (state_dir / "outbox.db").exists():
        raise InputError(f"{state_dir}: no outbox here yet; the worker makes it at its first start")
    return Outbox(state_dir, config.outbox, role="tool")


@outbox_group.command("list")
@_config_option(CONFIG)
@click.option("--state", type=click.Choice(STATES), help="Only rows in this state.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many rows.")
@click.option("--after", type=click.IntRange(0), default=0, help="Only rows after this number.")
def list_command(path: Path, state: str | None, limit: int, after: int) -> None:
    """List rows, oldest first: number, state, when accepted, source, lines, bytes, reason. No recognised text."""
    outbox = _open(path)
    try:
        rows = list(outbox.rows(None if state is None else STATES.index(state), limit, after))
    finally:
        outbox.close()
    click.echo("seq        state     accepted              source            lines  bytes   reason")
    for row in rows:
        page = _page(row)
        lines = len(page.get("lines", ()))
        click.echo(
            f"{row.seq:<10} {STATES[row.state]:<9} {_time(row.created_ms)}  {page.get('source', ''):<16}  "
            f"{lines:>5}  {len(row.result):>6}  {row.reason}"
        )
    if len(rows) == limit:
        click.echo(f"more with --after {rows[-1].seq}", err=True)


@outbox_group.command("show")
@_config_option(CONFIG)
@click.argument("seq", type=click.IntRange(1))
def show_command(path: Path, seq: int) -> None:
    """Print one row: its state, and the result as it is sent."""
    outbox = _open(path)
    try:
        row = outbox.row(seq)
    finally:
        outbox.close()
    if row is None:
        raise InputError(f"no row {seq} in the outbox; `edge-ocr outbox list` shows what there is")
    click.echo(msgspec.json.format(msgspec.json.encode(_exported(row))).decode())


@outbox_group.command("export")
@_config_option(CONFIG)
@click.option("--state", type=click.Choice(STATES), help="Only rows in this state.")
@click.option("-o", "--output", default="-", show_default=True, help="File, or - for standard output.")
def export_command(path: Path, state: str | None, output: str) -> None:
    """Write rows as JSON lines, for a machine whose link will not come back. Only the owner may read their file."""
    outbox = _open(path)
    try:
        with _output(output) as file:
            count = _export(outbox, None if state is None else STATES.index(state), file)
    except OSError as error:
        where = "standard output" if output == "-" else output
        raise InputError(f"{where}: {error.strerror}; give another place with -o: not all rows are there") from error
    finally:
        outbox.close()
    click.echo(f"{count} {'row' if count == 1 else 'rows'}", err=True)


def _output(name: str) -> AbstractContextManager[IO[bytes]]:
    if name != "-":
        return durable.exported(Path(name))
    sys.stdout.flush()
    return open(sys.stdout.fileno(), "wb", closefd=False)  # its own buffer: what cannot be written is not tried again


def _export(outbox: Outbox, state: int | None, file: IO[bytes]) -> int:
    """Write rows and return how many they are."""
    after, batch, count = 0, 500, 0
    while rows := list(outbox.rows(state, batch, after)):
        file.writelines(msgspec.json.encode(_exported(row)) + b"\n" for row in rows)
        after, count = rows[-1].seq, count + len(rows)
    return count


@outbox_group.command("retry")
@_config_option(CONFIG)
@click.argument("seqs", nargs=-1, type=click.IntRange(1))
@click.option("--all", "every", is_flag=True, help="All dead rows.")
def retry_command(path: Path, seqs: tuple[int, ...], every: bool) -> None:
    """Send dead rows again: those named, or all."""
    if bool(seqs) == every:
        raise click.UsageError("name rows, or give --all")
    outbox = _open(path)
    try:
        count = outbox.retry(None if every else seqs)
    finally:
        outbox.close()
    click.echo(f"{count} rows are sent again")


@outbox_group.command("stats")
@_config_option(CONFIG)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def stats_command(path: Path, as_json: bool) -> None:
    """Count rows by state, with the space they take."""
    outbox = _open(path)
    try:
        stats = outbox.stats()
    finally:
        outbox.close()
    if as_json:
        click.echo(msgspec.json.encode(stats).decode())
        return
    for name in stats.__struct_fields__:
        click.echo(f"{name:<10} {_said(getattr(stats, name))}")


def _said(value: object) -> str:
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return str(value)


def _page(row: Row) -> dict[str, Any]:
    try:
        return msgspec.json.decode(row.result, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {}


def _exported(row: Row) -> dict[str, Any]:
    return {
        "epoch": row.epoch,
        "seq": row.seq,
        "state": STATES[row.state],
        "reason": row.reason,
        "created_ms": row.created_ms,
        "sha256": row.sha256,
        "result": msgspec.Raw(row.result),
    }


def _time(ms: int) -> str:
    return datetime.datetime.fromtimestamp(ms / 1000).strftime("%Y-%m-%d %H:%M:%S")
