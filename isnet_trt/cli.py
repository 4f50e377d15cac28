"""Common parts of the command lines: exit statuses, error output, layout of the help."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence

from isnet_trt.errors import IsnetError

FAILED = 1
"""Exit status when the command ran but some input failed."""
ERROR = 2
"""Exit status when the command could not run (argparse uses it for wrong arguments)."""
INTERRUPTED = 130


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


positive.__name__ = "positive integer"  # argparse has this in its error messages


def run(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Run ``main(argv)``; print errors of this library as one line to stderr instead of a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may be no Unicode, a terminal may lack "×"
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return main(argv)
    except IsnetError as error:
        print(f"error: {error}", file=sys.stderr)
        return ERROR
    except BrokenPipeError:  # the reader of a pipe (head, less) has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
