"""``isnet-trt COMMAND``, or ``python -m isnet_trt COMMAND``: every command of the project under one name."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isnet_trt import __version__, cli
from isnet_trt.dispatch import Command, Dispatcher
from isnet_trt.errors import SettingsError

PROGRAM = "isnet-trt"
_DESCRIPTION = """ISNet semantic segmentation on TensorRT and ONNX Runtime: from a checkpoint to label maps.

COMMAND --help explains a command and its options, with examples."""


class _Benchmarks(Command):
    """The benchmarks, which are not installed: they lie beside the package in a checkout."""

    def load(self) -> Any:
        root = Path(__file__).resolve().parents[1]
        if importlib.util.find_spec("benchmarks") is None:
            if not (root / "benchmarks" / "suite.py").is_file():
                raise SettingsError(
                    "the benchmarks are not installed with the package: run them from a checkout of the repository, "
                    "with pip install --editable '.[cpu,bench]' there"
                )
            sys.path.append(str(root))
        return super().load()


def _command(text: str, module: str, *names: str) -> Command:
    return Command(text, f"isnet_trt.{module}", tuple(f"isnet_trt.{name}" for name in names or (module,)))


COMMANDS = {
    "build": _command("build a bundle from a checkpoint", "commands.build", "build", "commands.build"),
    "predict": _command("write label maps and overlays of pictures", "commands.predict", "predict"),
    "evaluate": _command("score a bundle or a checkpoint on labelled pictures", "commands.evaluate", "evaluate"),
    "bundle": _command("show a bundle, verify its files, or export it to Triton", "bundle.__main__", "bundle"),
    "triton-server": _command("serve exported bundles with NVIDIA's Triton", "integrations.triton_server"),
    "train": _command("train a recipe", "training.train"),
    "qat": _command("fine-tune a checkpoint for eight-bit engines", "commands.qat", "training.qat", "commands.qat"),
    "data": _command("look through a dataset before training", "datasets.check", "training.data"),
    "recipes": _command("list the recipes, or show one", "recipes.__main__", "training.recipes", "recipes"),
    "compare": _command("compare two graphs or engines, tensor by tensor", "export.compare"),
    "bench": _Benchmarks("measure speed and accuracy (in a checkout)", "benchmarks.__main__", ("benchmarks",)),
    "c-config": _command("build the C library, print its flags", "commands.c_config", "commands.c_config"),
    "demo": _command("the whole chain on a drawn street scene", "commands.demo", "demo"),
    "scenes": _command("draw street scenes", "training.scenes.__main__", "training.scenes"),
    "compile": _command("compile the CUDA kernels ahead of time", "kernels.compile"),
    "trial": _command("try whether an engine library can build a graph", "engines.trial"),
}


def dispatcher(prog: str = PROGRAM) -> Dispatcher:
    """The dispatcher of all commands, started as ``prog``."""
    return Dispatcher(prog, _DESCRIPTION, COMMANDS, __version__, PROGRAM)


def main(argv: Sequence[str] | None = None, prog: str = PROGRAM) -> int:
    """Run the command line; return the exit status."""
    return cli.run(dispatcher(prog).main, argv)


if __name__ == "__main__":
    raise SystemExit(main(prog="python -m isnet_trt"))
