"""``python -m isnet_trt.build``: a network in, a bundle out."""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from isnet_trt import cli
from isnet_trt.bundle import REPORT
from isnet_trt.cuda.element_types import FLOATS
from isnet_trt.engines.library import PRECISIONS
from isnet_trt.engines.table import KINDS, library
from isnet_trt.errors import SettingsError, needs
from isnet_trt.export.sources import CheckpointFile, Module, OnnxFile, Source
from isnet_trt.metrics import bytes_text
from isnet_trt.recipes import PRESETS

Options = TypeVar("Options", bound=Any)
_EPILOG = """examples:
  python -m isnet_trt.build --ckpt isnet_resnet50os8_ade20k.pth --out bundles/ade
  python -m isnet_trt.build --ckpt model.pth --engine tensorrt-rtx --static 512 1024 --out bundles/city
  python -m isnet_trt.build --ckpt model.pth --images my_pictures/ --out bundles/mine --force
  python -m isnet_trt.build --ckpt model.pth --precision fp16 --engine tensorrt-rtx --calib street/ --out bundles/half
  python -m isnet_trt.build --ckpt model.pth --precision int8 --engine onnxruntime --calib street/ --out bundles/cpu
  python -m isnet_trt.build --ckpt model.pth --engine tensorrt --workspace 2 --timing-cache old/timing.cache --out b
  python -m isnet_trt.build --ckpt model.pth --engine tensorrt --context native --version-compatible --out bundles/v
  python -m isnet_trt.build --ckpt model.pth --calib street/ --tune --tune-accuracy 99.5% --budget 20m --out bundles/t

any segmentation network (docs/any-network.md):
  python -m isnet_trt.build --onnx model.onnx --recipe mine.yaml --out bundles/any
  python -m isnet_trt.build --onnx two_outputs.onnx --output out --recipe mine.yaml --out bundles/any
  python -m isnet_trt.build --module package.module:factory --weights model.pth --recipe mine.yaml --out bundles/any

The recipe of a checkpoint (backbone, classes, preprocessing, inference settings) is found from its content unless
--recipe names it; python -m isnet_trt.training.recipes lists them. Any other network needs a YAML file with its
classes, mean and std; stride, sizes and batches are found by running it, and printed. Before anything is written the
engine is compared with the given network on pictures; what does not agree is not written. What agrees leaves
precision.html in the bundle: how many labels are equal and how many should be, on which pictures, which of them, which
classes and tensors suffer most, and mIoU of both where --score-on names labelled pictures.
"""


def _precision_table() -> str:
    """What each precision is under each library; libraries in which all are the same share a column."""
    columns: dict[tuple[str, ...], list[str]] = {}
    for kind in KINDS:
        meanings = library(kind).precisions
        name = kind if library(kind).needs_gpu else f"{kind} (CPU)"
        columns.setdefault(tuple(meanings.get(precision, "-") for precision in PRECISIONS), []).append(name)
    rows = [("precision", *map(", ".join, columns.values()))]
    rows += [("  " + precision, *cells) for precision, *cells in zip(PRECISIONS, *columns, strict=True)]
    return "\n".join("".join(f"{cell:{16 if n == 0 else 47}}" for n, cell in enumerate(row)).rstrip() for row in rows)


def argument_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = cli.parser(
        "isnet_trt.build",
        "Build a bundle from an ISNet checkpoint, or from any segmentation network.",
        f"{_EPILOG}\n{_precision_table()}",
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--ckpt", metavar="FILE", help="an ISNet checkpoint (.pth, .safetensors), released or trained")
    source.add_argument("--onnx", metavar="FILE", help="the ONNX graph of any segmentation network; needs --recipe")
    source.add_argument(
        "--module",
        metavar="NAME",
        help="any segmentation network as package.module:factory, a callable that returns a torch.nn.Module; "
        "its code is run; needs --recipe",
    )
    add("--out", required=True, metavar="DIR", help="the bundle's folder; a build that fails writes none")
    add("--recipe", metavar="NAME", help="name or YAML file of the recipe (default: found from the checkpoint)")
    add(
        "--weights",
        metavar="WHICH",
        help="of --ckpt: plain, or ema for the running average beside them (default: plain); "
        "of --module: a file with its state dict (default: the factory loads them)",
    )
    add("--input", metavar="NAME", help="input of --onnx, where it has several; or an inner tensor")
    add("--output", metavar="NAME", help="output of --onnx or --module, where it has several; or an inner tensor")
    add(
        "--engine",
        dest="kind",
        default="auto",
        choices=("auto", *KINDS),
        help="what runs the network (default: auto, the fastest that this machine can run; it says why)",
    )
    add("--precision", default="fp32", choices=PRECISIONS, help="the engine's arithmetic, see below (default: fp32)")
    add("--rest", choices=FLOATS, help="type of what int8 and fp8 leave out (default: fp16)")
    add("--calib", metavar="PATH", help="folder of typical pictures: needed for int8 and fp8, and better for fp16")
    add("--calib-inputs", type=cli.positive, metavar="N", help="at most N windows of them (default: 128)")
    add("--keep", nargs="+", default=(), metavar="MODULE", help="modules that int8 and fp8 leave out, as in the report")
    add("--max-drop", type=float, metavar="POINTS", help="keep blocks out of eight bits until no more is lost")
    images = "picture or folder for the comparison (default: some held out of --calib, else built in)"
    add("--images", metavar="PATH", help=images)
    add("--gate-inputs", type=cli.positive, metavar="N", help="compare at most N windows of them (default: 16)")
    equal = "write no bundle with fewer labels equal to the checkpoint's, such as 99%% (default: only reported)"
    add("--min-equal", type=share, metavar="SHARE", help=equal)
    add("--score-on", metavar="NAME", help="labelled set for mIoU, as isnet_trt.evaluate --dataset")
    add("--data", metavar="DIR", help="the labelled set's folder")
    _add_engine_options(parser.add_argument_group("TensorRT engines (docs/engines.md)"))
    _add_tune_options(parser.add_argument_group("tuning (docs/tuning.md)"))
    add("--kernels", action="store_true", help="put kernels and a graph for GPUs into an onnxruntime bundle too")
    half = (
        "leave the output of a half-precision network as it is: half the GPU memory for logits (docs/cuda-runtime.md)"
    )
    add("--half-logits", action="store_true", help=half)
    add("--force", action="store_true", help="replace a bundle that is already there")
    return parser


def _add_engine_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--batch", type=cli.whole(1, 4096), default=1, metavar="N", help="largest batch of windows (default: 1)")
    add("--static", type=cli.side, nargs=2, metavar=("H", "W"), help="an engine for one input size (default: any)")
    add("--targets", nargs="+", metavar="CC", help="compute capabilities that TensorRT-RTX builds for, such as 8.6 8.9")
    add(
        "--context",
        choices=("plugin", "native"),
        help="who computes the context operations: this library's kernels, or layers of the engine's own, "
        "which hold N x N scores (default: plugin)",
    )
    add(
        "--workspace",
        type=float,
        metavar="GIB",
        help="most scratch memory of a layer (default: all that the GPU has)",
    )
    add(
        "--hardware-compatible",
        action="store_true",
        help="TensorRT: an engine for every GPU from Ampere on, somewhat slower (default: for this GPU)",
    )
    add(
        "--version-compatible",
        action="store_true",
        help="TensorRT: an engine that later 10.x or 11.x run too; needs --context native",
    )
    add(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="TensorRT: timing.cache of another bundle, for a shorter build (default: that kept beside the bundle)",
    )
    levels = "how long TensorRT searches for kernels, 0 to 5 (default: the library's, 3)"
    add("--optimisation-level", type=int, choices=range(6), metavar="N", help=levels)
    streams = "most CUDA streams that layers of the engine use side by side (default: the library chooses)"
    device = "the GPU to build and check on, cuda:N (default: the first); with onnxruntime: for its CUDA provider"
    add("--device", type=cli.device, default="auto", metavar="DEVICE", help=device)
    add("--streams", type=cli.positive, metavar="N", help=streams)


def _add_tune_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--tune",
        action="store_true",
        help="try batches, precisions, context, optimisation levels, streams, threads on this machine: the fastest "
        "becomes the bundle; an interrupted search goes on with the same command",
    )
    add("--budget", type=duration, metavar="TIME", help="of the search, such as 90s, 20m, 1h30m (default: no limit)")
    add(
        "--tune-accuracy",
        type=share,
        metavar="SHARE",
        help="try other precisions too, and take none with fewer labels equal to the checkpoint's, such as 99.5%% "
        "(default: the precision stays as --precision says)",
    )
    sizes = "size of the timed picture (default: that of most --calib pictures, the first of --images, or the recipe's)"
    add("--tune-size", type=size, metavar="HxW", help=sizes)
    add("--tune-image", type=Path, metavar="FILE", help="the timed picture")
    add("--tune-preset", choices=PRESETS, help="settings of the timed calls (default: default)")


def duration(text: str) -> float:
    """Convert an option such as 90s, 20m or 1h30m to seconds."""
    match = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", text.strip())
    if match is None or not any(match.groups()):
        raise ValueError
    seconds = sum(unit * float(part or 0) for unit, part in zip((3600, 60, 1), match.groups(), strict=True))
    if not 0 < seconds < math.inf:
        raise ValueError
    return seconds


def share(text: str) -> float:
    """Convert an option such as 99.5% or 0.995 to a share above 0 and up to 1."""
    number = float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    if not 0 < number <= 1:
        raise ValueError
    return number


def size(text: str) -> tuple[int, int]:
    """Convert an option such as 512x1024 to (height, width)."""
    height, width = (cli.side(part) for part in re.split("[x×]", text.lower()))
    return height, width


duration.__name__, share.__name__ = "time above 0 (such as 90s, 20m or 1h30m)", "share (such as 99.5% or 0.995)"
size.__name__ = "size (such as 512x1024)"


def _tuning(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """The fields of the tuning's options; None without ``--tune``."""
    options = {
        "accuracy": arguments.tune_accuracy,
        "budget": arguments.budget,
        "size": arguments.tune_size,
        "image": arguments.tune_image,
        "preset": arguments.tune_preset,
    }
    stated = {name: value for name, value in options.items() if value is not None}
    if arguments.tune:
        return stated
    if stated:
        option = "--budget" if "budget" in stated else f"--tune-{next(iter(stated))}"
        raise SettingsError(f"{option} is for a tuning; add --tune, or leave it out")
    return None


def _filled(options: type[Options], arguments: argparse.Namespace) -> Options:
    """A dataclass of options from the arguments of the same names."""
    fields = {field: getattr(arguments, field) for field in options.__dataclass_fields__}
    values = {name: value for name, value in fields.items() if value is not None}
    return options(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


_OF_SOURCE = {"ckpt": {"weights"}, "onnx": {"input", "output"}, "module": {"weights", "output"}}
"""Option that names the network -> the options that belong to it."""


def _source(arguments: argparse.Namespace) -> Source:
    """What the arguments say to build from.

    Raises:
        SettingsError: an option belongs to another kind of network, or the recipe is missing.
    """
    kind = next(name for name in _OF_SOURCE if getattr(arguments, name) is not None)
    for name in ("weights", "input", "output"):
        if getattr(arguments, name) is not None and name not in _OF_SOURCE[kind]:
            owners = " and ".join(f"--{other}" for other, names in _OF_SOURCE.items() if name in names)
            raise SettingsError(f"--{name} is for {owners}; leave it out")
    if kind == "ckpt":
        weights = arguments.weights or "plain"
        if weights not in ("plain", "ema"):
            raise SettingsError(f"--weights {weights!r}: of a checkpoint it is plain or ema")
        return CheckpointFile(arguments.ckpt, arguments.recipe, cast(Literal["plain", "ema"], weights))
    if arguments.recipe is None:
        raise SettingsError(
            f"--{kind} needs --recipe FILE.yaml with at least name, classes, mean and std (docs/any-network.md)"
        )
    if kind == "onnx":
        return OnnxFile(arguments.onnx, arguments.recipe, arguments.input, arguments.output)
    return Module(arguments.module, arguments.recipe, arguments.weights, arguments.output)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = argument_parser().parse_args(argv)
    tuning = _tuning(arguments)
    cli.check_needed(arguments, data="score_on", calib_inputs="calib")
    if arguments.rest and not (arguments.precision in ("int8", "fp8") or arguments.tune_accuracy):
        raise SettingsError(f"--rest has no effect with --precision {arguments.precision}: leave it out")
    with needs("building", "build"):
        from isnet_trt.export import EngineOptions, EvidenceOptions, PrecisionOptions, TuneOptions, build
    bundle = build(
        _source(arguments),
        arguments.out,
        engine=_filled(EngineOptions, arguments),
        precision=_filled(PrecisionOptions, arguments),
        evidence=_filled(EvidenceOptions, arguments),
        tune=None if tuning is None else TuneOptions(**tuning),
        force=arguments.force,
        say=cli.echo,
        command=cli.invocation("isnet_trt.build", argv),
    )
    size = sum(info.bytes for info in bundle.manifest.files.values())
    cli.echo(f"bundle      {bundle.folder} ({bytes_text(size)})")
    if (page := f"{REPORT}.html") in bundle.manifest.files:
        cli.echo(f"proof       {bundle.folder / page}")
    cli.echo(f"next:       {cli.command_line('isnet_trt.predict')} {shlex.quote(str(bundle.folder))} IMAGE --out DIR")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
