"""Exit codes, and the errors that know their exit code and what to do next."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """Exit statuses of `edge-ocr`, with the numbers of BSD's sysexits.h where one fits."""

    OK = 0
    SOME_FAILED = 1  # some pages were read, others were not
    USAGE = 2  # click's own number for wrong options
    DATA = 65  # EX_DATAERR: the input is not a page that can be read
    NO_INPUT = 66  # EX_NOINPUT: a file is missing or may not be opened
    UNAVAILABLE = 69  # EX_UNAVAILABLE: a runtime, package or program is missing
    SOFTWARE = 70  # EX_SOFTWARE: a defect of ours
    BUNDLE = 74  # EX_IOERR: a model bundle cannot be trusted
    TEMPORARY = 75  # EX_TEMPFAIL: try again later or with more memory
    CONFIG = 78  # EX_CONFIG: a recipe or setting is wrong
    INTERRUPTED = 130  # 128 + SIGINT


class AgentError(Exception):
    """An error a user can act on: one line that says what is wrong and what to do next."""

    code = ExitCode.SOFTWARE


class InputError(AgentError):
    """A path given by the user is missing, unreadable or of the wrong kind."""

    code = ExitCode.NO_INPUT
    reason = "input"  # as a page's verdict, beside those of FrameError


class FrameError(AgentError):
    """This page cannot be read; others may. `reason` is one stable word for counting."""

    code = ExitCode.DATA

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class BundleError(AgentError):
    """A model bundle is missing, damaged, of another target or of a newer format."""

    code = ExitCode.BUNDLE


class PackageError(AgentError):
    """A package is damaged, or cannot be made of what was named."""

    code = ExitCode.BUNDLE


class InstallError(AgentError):
    """A package cannot be installed on this machine; what was installed before is as it was."""

    code = ExitCode.UNAVAILABLE


class EngineError(AgentError):
    """No usable inference runtime for what was asked."""

    code = ExitCode.UNAVAILABLE


class BudgetError(AgentError):
    """The memory budget is too small for any page; the message says what is needed."""

    code = ExitCode.TEMPORARY


class ConfigError(AgentError):
    """A recipe or setting is wrong; the message names the key, the value and what is accepted."""

    code = ExitCode.CONFIG


class BusyError(AgentError):
    """Another process does this already; it works again when that has ended."""

    code = ExitCode.TEMPORARY


class ProvisionError(AgentError):
    """The box cannot take its settings now; started again, it goes on where it was."""

    code = ExitCode.TEMPORARY


class ScannerError(AgentError):
    """A scanner gives no page now; the message says what to do at it."""

    code = ExitCode.TEMPORARY


class MessageError(AgentError):
    """A message from the other end is not one of the protocol; it is refused and counted."""

    code = ExitCode.DATA


class OutboxError(AgentError):
    """The outbox takes no more for now: full, read-only or failing. Nothing accepted is lost."""

    code = ExitCode.TEMPORARY


class ConversionError(AgentError):
    """A model cannot be converted; the message names the operator, shape or file."""

    code = ExitCode.DATA


def readable(text: str) -> str:
    """Return text as valid Unicode, which JSON and SQLite take: bytes of a file's name that are no UTF-8 as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
