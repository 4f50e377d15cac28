"""Common parts of the command lines: exit statuses, error output, layout of the help.

`run` is the one place where an exception ends a command: whatever was raised becomes one line on stderr and a status.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from isnet_trt.errors import IsnetError, install_hint

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


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps line breaks in descriptions and examples, and wraps at 110 columns."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=110)


def parser(module: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """An argument parser for ``python -m module``."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, epilog=epilog, formatter_class=HelpFormatter
    )


def positive(text: str) -> int:
    """Convert an option to a whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def add_weights(add: Callable[..., Any]) -> None:
    """Add the option ``--weights`` of commands that read a checkpoint; ``add`` is a parser's ``add_argument``."""
    text = "of a checkpoint: as trained, or their running average stored beside them (default: plain)"
    add("--weights", choices=("plain", "ema"), default="plain", help=text)


positive.__name__ = "positive integer"  # argparse has this in its error messages


def run(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Run ``main(argv)`` and return the exit status; an exception becomes one line on stderr, never a traceback.

    Status: `main`'s own; `ERROR` for an error of this library, the system (`OSError`, `MemoryError`) or a package that
    is not installed; `BUG` for any other exception; `INTERRUPTED` after Ctrl-C; 0 if the reader of a pipe closed it.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may be no Unicode, a terminal may lack "×"
        sys.stdout.reconfigure(errors="backslashreplace")
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
    print(f"error: {_visible(message)}", file=sys.stderr)
    return status


def _explain(error: Exception) -> tuple[str, int]:
    """The message and the exit status of an exception."""
    if isinstance(error, IsnetError):
        return str(error), ERROR
    if isinstance(error, OSError):
        return system_message(error), ERROR
    if isinstance(error, MemoryError):
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


def _visible(text: str) -> str:
    r"""``text`` with control characters but line breaks as ``\x1b``: a file's name must not command the terminal."""
    text = re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # a name may be no Unicode
