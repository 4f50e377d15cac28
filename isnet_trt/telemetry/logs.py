"""Handlers for the logger ``isnet_trt``: readable lines on the terminal, and JSON lines for machines.

The library itself only creates records. Without a handler of the application, or of a command line, they go nowhere.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from isnet_trt.errors import SettingsError, escaped

ROOT = logging.getLogger("isnet_trt")
STDERR = "-"
"""In place of the name of a file: JSON lines go to standard error, because standard output holds results."""
PRINTED = {"printed": True}
"""Extra field of records whose text the command prints as well: the terminal does not show them twice."""
_LONGEST_RECORD = 1 << 20
_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)
_STANDARD = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", *PRINTED})


class StderrHandler(logging.Handler):
    """Write records to standard error, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            # Looked up at each record: standard error may have been replaced. A bar of tqdm is redrawn below the line.
            if tqdm := sys.modules.get("tqdm"):
                tqdm.tqdm.write(text, file=sys.stderr)
            else:
                print(text, file=sys.stderr)
        except Exception:
            self.handleError(record)


class TerminalHandler(StderrHandler):
    """Lines for people: ``warning: text``, ``error: text``. Tracebacks are shown at level DEBUG only."""

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(lambda record: not hasattr(record, "printed"))

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record) if self.level <= logging.DEBUG else record.getMessage()
        text = escaped(text, keep="\n")  # it may quote names from files, which must not command the terminal
        if record.levelno >= logging.WARNING:
            return f"{record.levelname.lower()}: {text}"
        return text if record.levelno >= logging.INFO else f"{record.name}: {text}"


class JsonFormatter(logging.Formatter):
    """One JSON object: time (UTC, ISO 8601), level, logger, message, process, thread, and the record's extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        line = {
            "time": moment.isoformat(timespec="microseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
            "thread": record.threadName,
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def show(verbosity: int) -> None:
    """Write records to the terminal: warnings (0), information (1), everything (2 or more)."""
    for handler in [handler for handler in ROOT.handlers if isinstance(handler, TerminalHandler)]:
        ROOT.removeHandler(handler)
    _add(TerminalHandler(), _LEVELS[min(verbosity, len(_LEVELS) - 1)])


def write_json(path: str, verbosity: int = 0) -> None:
    """Append records to a file, one JSON object per line: information, and everything if ``verbosity`` is above 1.

    Raises:
        SettingsError: the file cannot be written, or holds something else.
    """
    try:
        if path != STDERR and not _takes_records(Path(path)):
            raise SettingsError(f"--log-json {path} is no file of log records; name another, or - for stderr")
        handler = StderrHandler() if path == STDERR else logging.FileHandler(Path(path), encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"--log-json {path} cannot be written: {error.strerror or error}") from None
    handler.setFormatter(JsonFormatter())
    _add(handler, _LEVELS[2 if verbosity > 1 else 1])


def _takes_records(path: Path) -> bool:
    """Whether ``path`` is no file yet, an empty one, or begins with a record.

    The option takes the argument that follows it: records must not be appended to a picture.
    """
    if not path.is_file():
        return True
    with path.open("rb") as stream:
        line = stream.readline(_LONGEST_RECORD)
    try:
        return not line or {"time", "level", "message"} <= set(json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return False


def logged(say: Callable[[str], None], logger: logging.Logger) -> Callable[[str], None]:
    """``say``, which takes lines for the user, with a record of each line."""

    def both(text: str) -> None:
        say(text)
        logger.info("%s", text.strip(), extra=PRINTED)

    return both


def _add(handler: logging.Handler, level: int) -> None:
    handler.setLevel(level)
    ROOT.addHandler(handler)
    ROOT.setLevel(min(other.level for other in ROOT.handlers if not isinstance(other, logging.NullHandler)))


@contextlib.contextmanager
def command_line() -> Iterator[None]:
    """Show warnings while a command runs; afterwards take away every handler that it added, and close its files."""
    handlers, level = list(ROOT.handlers), ROOT.level
    show(0)
    try:
        yield
    finally:
        for handler in [handler for handler in ROOT.handlers if handler not in handlers]:
            ROOT.removeHandler(handler)
            handler.close()
        ROOT.setLevel(level)
