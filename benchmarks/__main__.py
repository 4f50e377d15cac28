"""``python -m benchmarks COMMAND``: the benchmarks as one command; each is also a module, ``benchmarks.COMMAND``."""

from __future__ import annotations

from collections.abc import Sequence

from isnet_trt import cli
from isnet_trt.dispatch import Command, Dispatcher

_HELP = {
    "suite": "measure the committed cases, for a result file",
    "latency": "time bundles from picture to labels, beside other ways",
    "accuracy": "score bundles of the demo model on drawn scenes",
    "postprocess": "time the merge of scores to labels",
    "precision": "what each precision costs in mIoU",
    "limit": "how far an engine is from the machine's limit",
    "growth": "time and memory over picture size and windows",
    "kernels": "time the CUDA kernels (needs a GPU)",
    "kernel_cost": "registers, shared memory and code size of compiled kernels",
    "networks": "build networks of other libraries, and compare their labels with their own run",
    "pipelines": "this library beside loops, MONAI and transformers around one session",
    "telemetry": "what profiler ranges and call statistics cost",
    "training": "crops a second of training iterations, and their slowest kernels",
    "video": "frames a second of a video, beside a plain loop",
    "serving": "a Triton Inference Server beside direct calls",
    "scale": "Ray Data beside a plain loop over image files",
    "regress": "compare two result files",
    "report": "make pages and the tables of the documentation from result files",
}
COMMANDS = {name: Command(text, f"benchmarks.{name}", (f"benchmarks.{name}",), "bench") for name, text in _HELP.items()}


def _dispatcher() -> Dispatcher:
    return Dispatcher(cli.command_line("benchmarks"), "Measure speed and accuracy on this machine.", COMMANDS)


def argument_parser() -> cli.Parser:
    """The parser of the benchmarks' names. Their options are left out: the modules import torch and onnx."""
    return _dispatcher().names_parser()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a benchmark; return its exit status."""
    return _dispatcher().main(argv)


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
