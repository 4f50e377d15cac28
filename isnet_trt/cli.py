"""What the command lines share: how errors end a command and how help is laid out."""

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
"""Exit status when the command could not be done (as argparse uses it for wrong arguments)."""
INTERRUPTED = 130


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the layout of examples in descriptions, wraps option texts a little wider than argparse does."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=110)


def parser(module: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """An argument parser for ``python -m module``."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, epilog=epilog, formatter_class=HelpFormatter
    )


def positive(text: str) -> int:
    """An option's whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


positive.__name__ = "positive integer"  # argparse names the type by this in its errors


def run(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """``main(argv)`` with the errors of this library as one line on stderr instead of a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may be no Unicode, a terminal may know no "×"
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return main(argv)
    except IsnetError as error:
        print(f"error: {error}", file=sys.stderr)
        return ERROR
    except BrokenPipeError:  # the reader of a pipe (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
