"""The installer's command line, behind a package's `.run` and in `python3 /opt/edge-ocr/current/install.py`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from agent.errors import AgentError, ExitCode, InstallError
from agent.install import package as packages
from agent.install import steps, system
from agent.install.package import MANIFEST
from agent.install.steps import Source


def main(home: Path, arguments: Sequence[str]) -> int:
    """Do what the arguments say and return the exit status.

    Args:
        home: the folder of `install.py`.
        arguments: after the program's name.
    """
    os.umask(0o022)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))  # so that what was done is taken back
    try:
        _do(home, _parser().parse_args(arguments))
    except AgentError as error:
        return _failed(str(error), error.code)
    except OSError as error:
        return _failed(f"{error.filename or 'disk'}: {error.strerror}", ExitCode.TEMPORARY)
    except KeyboardInterrupt:
        return _failed("stopped", ExitCode.INTERRUPTED)
    return ExitCode.OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="install.py", description="Installs, goes back or removes. Uses no network.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--extract", type=Path, metavar="DIR", help="only unpack the package, into DIR")
    what.add_argument("--verify", action="store_true", help="only look at every byte of the package")
    what.add_argument("--info", action="store_true", help="only tell what it is")
    what.add_argument("--rollback", action="store_true", help="go back to the release before")
    what.add_argument("--uninstall", action="store_true", help="remove all but settings and data")
    what.add_argument("--purge", action="store_true", help="remove all, settings, data and user too")
    what.add_argument("--configure", action="store_true", help=argparse.SUPPRESS)  # by the Debian package
    what.add_argument("--take-away", action="store_true", help=argparse.SUPPRESS)  # likewise
    parser.add_argument("--package", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--offset", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def _do(home: Path, given: argparse.Namespace) -> None:
    if given.info:
        _say(packages.read(home).about)
    elif given.verify:
        _verify(home, given)
    elif given.extract:
        _extract(given)
    else:
        system.require_root()
        _change(home, given)


def _change(home: Path, given: argparse.Namespace) -> None:
    if given.rollback:
        steps.roll_back(_say)
    elif given.uninstall or given.purge:
        steps.uninstall(_say, purge=given.purge)
    elif given.configure:
        steps.configure(home, _say)
    elif given.take_away:
        steps.leave()
    elif given.package:
        steps.install(Source(given.package, given.offset, packages.read(home)), _say)
    else:
        raise InstallError("say what to do: --rollback, --uninstall or --purge; a package's .run installs")


def _verify(home: Path, given: argparse.Namespace) -> None:
    if given.package:
        with given.package.open("rb") as file:
            file.seek(given.offset)
            package = packages.unpack(file, None)
    else:
        package = packages.verify(home)
    _say(f"whole: {len(package.files)} files, {package.bytes >> 20} MB as {MANIFEST} says")


def _extract(given: argparse.Namespace) -> None:
    if not given.package:
        raise InstallError("--extract is for a package's .run")
    given.extract.mkdir(parents=True, exist_ok=True)
    if any(given.extract.iterdir()):
        raise InstallError(f"{given.extract}: is not empty")
    with given.package.open("rb") as file:
        file.seek(given.offset)
        packages.unpack(file, given.extract)


def _say(line: str) -> None:
    try:
        print(line, flush=True)
    except OSError:  # nobody listens any more: that is no reason to stop halfway
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as this runs


def _failed(why: str, code: ExitCode) -> int:
    print(f"edge-ocr: {why}", file=sys.stderr, flush=True)
    return code
