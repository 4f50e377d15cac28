"""Common parts of the command lines: exit statuses, error output, layout of the help, logging options.

`run` is the one place where an exception ends a command: whatever was raised becomes one line on stderr and a status.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from isnet_trt.errors import IsnetError, SettingsError, escaped, install_hint, is_out_of_memory, nearest
from isnet_trt.settings import Placement
from isnet_trt.telemetry import logs

FAILED = 1
"""Exit status when the command ran but some input failed."""
ERROR = 2
"""Exit status when the command could not run (argparse uses it for wrong arguments)."""
BUG = 70
"""Exit status of an exception that nobody foresaw (``EX_SOFTWARE`` of sysexits.h)."""
INTERRUPTED = 130
TRACEBACK = "ISNET_TRT_TRACEBACK"
"""Environment variable: with any value but 0 an error's traceback is printed before its line."""
_EXTRAS = ("build", "train", "bench")
_log = logging.getLogger(__name__)
_names: dict[str, str] = {}
"""Module -> how the user starts it, where that is not ``python -m module``."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps line breaks in descriptions and examples, wraps at 110 columns, and names commands as the user does."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"max_help_position": 28, "width": 110, **options})

    def _expand_help(self, action: argparse.Action) -> str:
        return renamed(super()._expand_help(action))

    def _format_text(self, text: str) -> str:
        return renamed(super()._format_text(text))


class Parser(argparse.ArgumentParser):
    """A parser with the logging options of every command; it names the choice that is nearest to a wrong one."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": HelpFormatter, **options})
        add = self.add_argument_group("logging").add_argument
        # Without a default: a sub-command's parser must not reset what was given before the sub-command.
        more = "show what is done on stderr (-vv: everything)"
        add("-v", "--verbose", action="count", default=argparse.SUPPRESS, help=more)
        lines = f"append log records to FILE as JSON lines ({logs.STDERR}: to stderr)"
        add("--log-json", metavar="FILE", default=argparse.SUPPRESS, help=lines)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and set the logging up; the options of logging are no part of the result."""
        result = super().parse_args(args) if namespace is None else super().parse_args(args, namespace)
        verbosity, path = (vars(result).pop(name, None) for name in ("verbose", "log_json"))
        if verbosity:
            logs.show(verbosity)
        if path is not None:
            logs.write_json(path, verbosity or 0)
        return result

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        if not arg_string:  # of a shell variable that is not set; as a path it would be the working folder
            raise argparse.ArgumentError(action, "the value is empty")
        return super()._get_value(action, arg_string)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            if "did you mean" not in str(error.message) and "maybe you meant" not in str(error.message):
                error.message = f"{error.message}{nearest(str(value), map(str, action.choices or ()))}"
            raise


def parser(module: str, description: str, epilog: str = "") -> Parser:
    """An argument parser for a command: ``python -m module``, or the name that the dispatcher gave it."""
    return Parser(prog=command_line(module), description=description, epilog=epilog)


def command_line(module: str) -> str:
    """How a command is started: ``python -m module``, or the name that the dispatcher gave it."""
    return _names.get(module, f"python -m {module}")


def invocation(module: str, argv: Sequence[str] | None) -> str:
    """The command as the user typed it, quoted for a shell; ``argv`` are its arguments (None: this process's)."""
    return f"{command_line(module)} {shlex.join(sys.argv[1:] if argv is None else argv)}"


def renamed(text: str) -> str:
    """``text`` with each ``python -m module`` as the user starts it; a column of explanations beside it stays."""

    def replacement(match: re.Match[str]) -> str:
        name, arguments, gap = command_line(match["module"]), match["arguments"], match["gap"]
        return f"{name}{arguments}{gap and gap.ljust(len(match[0]) - len(name + arguments))}"

    return re.sub(r"python -m (?P<module>[\w.]+\w)(?P<arguments>(?: ?\S)*)(?P<gap> *)", replacement, text)


@contextlib.contextmanager
def naming(names: Mapping[str, str]) -> Iterator[None]:
    """While this is open, commands are named after ``names`` (module -> name) in usage, help and messages."""
    before = dict(_names)
    _names.update(names)
    try:
        yield
    finally:
        _names.clear()
        _names.update(before)


def whole(low: int, high: int) -> Callable[[str], int]:
    """A converter of an option to a whole number within low..high, which argparse names in its error."""

    def convert(text: str) -> int:
        number = int(text)
        if not low <= number <= high:
            raise ValueError
        return number

    convert.__name__ = f"whole number from {low} to {high}"
    return convert


def number(low: float, high: float) -> Callable[[str], float]:
    """A converter of an option to a number within low..high."""

    def convert(text: str) -> float:
        value = float(text)
        if not low <= value <= high:  # nor NaN
            raise ValueError
        return value

    convert.__name__ = f"number from {low:g} to {high:g}"
    return convert


positive = whole(1, 2**31 - 1)
natural = whole(0, 2**31 - 1)
seed = whole(0, 2**32 - 1)
threads = whole(1, 4096)
side = whole(1, 2**16)
"""Height or width in pixels."""


def device(text: str) -> str:
    """A converter of an option to the name of a device: auto, cpu, cuda or cuda:N."""
    try:
        Placement.parse(text)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def add_weights(add: Callable[..., Any]) -> None:
    """Add the option ``--weights`` of commands that read a checkpoint; ``add`` is a parser's ``add_argument``."""
    text = "of a checkpoint: as trained, or their running average stored beside them (default: plain)"
    add("--weights", choices=("plain", "ema"), default="plain", help=text)


def check_needed(arguments: argparse.Namespace, **needed: str) -> None:
    """Check that no option is given alone that has no effect without another: option=the other.

    Raises:
        SettingsError: one is; the message names both options.
    """
    for name, other in needed.items():
        if getattr(arguments, name) and not getattr(arguments, other):
            option, companion = (f"--{text.replace('_', '-')}" for text in (name, other))
            raise SettingsError(f"{option} has no effect without {companion}: add it, or leave {option} out")


def echo(text: str, file: TextIO | None = None) -> None:
    """Print text that may hold names of files; control characters in it, but line breaks and tabs, are escaped."""
    print(escaped(text, keep="\n\t"), file=file, flush=True)


def note(text: str) -> None:
    """Print a line about what is done on stderr, and record it for ``--log-json``."""
    echo(text, sys.stderr)
    _log.info("%s", text, extra=logs.PRINTED)


def run(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Run ``main(argv)`` and return the exit status; an exception becomes one line on stderr, never a traceback.

    Status: `main`'s own; `ERROR` for an error of this library, the system (`OSError`), exhausted memory (whichever
    library reports it) or a package that is not installed; `BUG` for any other exception; `INTERRUPTED` after Ctrl-C;
    0 if the reader of a pipe closed it.
    """
    # Read by OpenCV when it is loaded: it warns of every tag of a GeoTIFF that it does not know, and writes several
    # lines for a video that cannot be opened.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "FATAL")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may be no Unicode, a terminal may lack "×"
        sys.stdout.reconfigure(errors="backslashreplace")
    with logs.command_line():
        return _run(main, argv)


def _run(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None) -> int:
    try:
        status = main(argv)
    except SystemExit:  # of argparse, after the help or a wrong argument
        if failed := _flush():
            return failed
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe (head, less) has closed it
        status = 0
    except Exception as error:
        status = _report(error)
    return _flush() or status


def _flush() -> int:
    """Write what ``print`` still holds, whose failure Python would report by a traceback at exit; `ERROR` if it fails.

    Output that has nowhere to go is dropped: a closed pipe silently, a full disk with an error.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0 if isinstance(error, BrokenPipeError) else _report(error)
    return 0


def _report(error: Exception) -> int:
    if os.environ.get(TRACEBACK, "0") not in ("", "0"):
        traceback.print_exception(error)
    message, status = _explain(error)
    # A file's name must not command the terminal.
    _log.error("%s", escaped(message, keep="\n"), exc_info=error)
    return status


def _explain(error: Exception) -> tuple[str, int]:
    """The message and the exit status of an exception."""
    if isinstance(error, IsnetError):
        return str(error), ERROR
    if isinstance(error, OSError):
        return system_message(error), ERROR
    if is_out_of_memory(error):
        return f"not enough memory ({_line(error) or 'an allocation failed'}); use smaller inputs or batches", ERROR
    if isinstance(error, RecursionError):
        return f"an input is nested too deeply ({_line(error)})", ERROR
    if isinstance(error, ImportError) and not (error.name or "").startswith("isnet_trt"):
        return f"a package is missing or cannot be imported ({_line(error)}); {install_hint(*_EXTRAS)}", ERROR
    *_, last = traceback.extract_tb(error.__traceback__)
    return (
        f"unexpected {type(error).__name__}: {_line(error)} ({last.filename}:{last.lineno}); this is a bug: "
        f"please report it with the traceback, which {TRACEBACK}=1 prints"
    ), BUG


def system_message(error: OSError) -> str:
    """The files of a system error and the system's reason, such as ``out/a.png: No space left on device``."""
    files = " -> ".join(
        os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)
    )
    reason = error.strerror or _line(error) or type(error).__name__
    return f"{files}: {reason}" if files else reason


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
