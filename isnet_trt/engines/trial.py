"""``python -m isnet_trt.engines.trial tensorrt-rtx FILE.onnx``: can the library build this graph?

A question to a library that may end the process, so that it is put in a process of its own. The graph has static
shapes. Context operations are tried by their function bodies. exit status: 0 yes, 1 no (why is on stdout), 2 the
question cannot be put here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from isnet_trt import cli
from isnet_trt.engines.libraries import LIBRARIES, collecting_logger, import_library, started
from isnet_trt.errors import SettingsError


def refusal(kind: str, path: Path) -> str:
    """Why the library ``kind`` cannot build the graph in a file; empty where it can.

    Raises:
        EngineUnavailable: the library is not installed.
        EngineError: it does not start.
        SettingsError: the file cannot be read.
    """
    library = import_library(kind)
    logger = collecting_logger(library)
    builder = started(library.Builder, logger, f"{kind} {library.__version__}")
    strongly = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly is None else 1 << int(strongly))
    parser = library.OnnxParser(network, logger)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror or error}") from None
    if not parser.parse(content):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        return "; ".join(f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in errors) or "; ".join(logger.errors)
    if builder.build_serialized_network(network, builder.create_builder_config()) is None:
        return "; ".join(logger.errors[-3:]) or "the library gave no reason"
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = cli.parser("isnet_trt.engines.trial", "Ask a TensorRT library whether it can build a graph.")
    parser.add_argument("kind", choices=tuple(LIBRARIES), help="the library")
    parser.add_argument("graph", metavar="FILE.onnx", type=Path, help="a graph of static shapes")
    arguments = parser.parse_args(argv)
    said = refusal(arguments.kind, arguments.graph)
    if said:
        print(said)
    return cli.FAILED if said else 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
