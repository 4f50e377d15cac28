"""``python -m isnet_trt.engines.trial tensorrt-rtx FILE.onnx``: can the library build this graph?

A library may end the process over a graph that it cannot build, so the trial is a process of its own. The graph has
static shapes; context operations are tried by their function bodies. Exit status: 0 yes, 3 no (the reason is on
stdout), 2 the library cannot be tried here. Python itself ends with 1 after an unexpected error. A process that a
signal has ended is the library's doing, but for SIGALRM, which ends it after ``--timeout`` seconds.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from isnet_trt import cli
from isnet_trt.engines.table import compiling_kinds, library
from isnet_trt.settings import Placement

REFUSED = 3
"""Exit status when the library refuses the graph."""
TIMEOUT = 3600
"""Seconds that a trial may take by default where it is a process of its own."""


def argument_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = cli.parser("isnet_trt.engines.trial", "Try whether an engine library can build a graph.")
    parser.add_argument("kind", choices=compiling_kinds(), help="the library")
    parser.add_argument("graph", metavar="FILE.onnx", type=Path, help="a graph of static shapes")
    parser.add_argument("--timeout", type=cli.positive, metavar="SECONDS", help="give up after (default: never)")
    parser.add_argument(
        "--device", type=cli.device, default="auto", metavar="DEVICE", help="the GPU to build on, cuda:N"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = argument_parser().parse_args(argv)
    if arguments.timeout and hasattr(signal, "alarm"):
        # The signal's default action ends the process also while the library holds the interpreter's lock.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(arguments.timeout)
    refusal = library(arguments.kind).refusal(arguments.graph, Placement.parse(arguments.device).gpu)
    if refusal:
        print(refusal)
    return REFUSED if refusal else 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
