"""Fine-tune a checkpoint for eight-bit engines: a few epochs with the engine's rounding inside the network.

    python -m isnet_trt.training.qat --ckpt training/assets/isnet_demo.pth --out isnet_demo_int8.pth
    python -m isnet_trt.training.qat --ckpt model.pth --data ADE20k --epochs 2 --out model_int8.pth

For models that lose too much in eight bits (see --max-drop of python -m isnet_trt.build). Activations are rounded where
the TensorRT graph has Q/DQ nodes, with scales from a calibration on the training pictures; weights per output channel.
The result is a checkpoint in the published layout: build from it with --precision int8 as from any other. It is written
after the last epoch; Ctrl-C leaves no file.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isnet_trt import cli
from isnet_trt.datasets.coverage import refuse_unlabelled, refuse_unreadable_files, survey
from isnet_trt.datasets.layouts import open_dataset
from isnet_trt.datasets.picture_set import Source
from isnet_trt.errors import SettingsError, needs
from isnet_trt.files import may_use
from isnet_trt.recipes import Recipe, is_described
from isnet_trt.training.classes import Classes
from isnet_trt.training.options import SceneSet, Tuning

if TYPE_CHECKING:  # this module and those below import torch and onnx, which --help does without
    from isnet_trt.export.network_inputs import NetworkInput


def calibration_pictures(recipe: Recipe, source: Source, count: int) -> Iterator[NetworkInput]:
    """Network inputs from the first ``count`` pictures of a training set, through the runtime's test resize."""
    from isnet_trt.export.network_inputs import NetworkInput
    from isnet_trt.pictures.preprocess import check_image, resize

    for index in range(min(count, len(source))):
        image = resize(check_image(source[index][0], "bgr"), recipe.preprocess)
        yield NetworkInput.from_image(str(index), image, recipe.preprocess)


def main(argv: Sequence[str] | None = None) -> int:
    """Calibrate, fine-tune, write."""
    args = argument_parser().parse_args(argv)
    with needs("fine-tuning", "build", "train"):
        import torch

        from isnet_trt.export.quantise import calibrate
        from isnet_trt.export.quantise.training import training_placement
        from isnet_trt.export.tracing import export_graph
        from isnet_trt.training.checkpoint import load_checkpoint, load_model, save_checkpoint
        from isnet_trt.training.fine_tune import fine_tune
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.ckpt.suffix.lower() == ".onnx":
        raise SettingsError(
            f"{args.ckpt}: quantisation-aware fine-tuning trains a checkpoint of an ISNet, not a graph; keep layers of "
            "other networks out of eight bits by build --max-drop or --keep (docs/any-network.md)"
        )
    checkpoint = load_checkpoint(args.ckpt, args.recipe, args.weights)
    _check_out(args.out, checkpoint.path)
    model, recipe = load_model(checkpoint), checkpoint.recipe
    source = _source(args, recipe)
    refuse_unreadable_files(source)
    refuse_unlabelled(source, survey(source, recipe.labels.count), "training")
    proto = export_graph(model, recipe.name)
    table = calibrate(
        proto, calibration_pictures(recipe, source, args.calibration), total=args.calibration, threads=args.threads
    )
    placement = training_placement(proto, table, args.flavour, args.skip)
    cli.echo(f"{recipe.name}: {len(placement.weights)} layers in eight bits ({placement.type})")
    tuning = Tuning(args.epochs, args.batch or recipe.batch, args.lr, args.seed, args.workers, args.repeats)
    state = fine_tune(model, recipe, source, placement, tuning)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    noted = {"recipe": recipe.name, "classes": Classes.of(recipe).entry()}
    save_checkpoint(args.out, state, **noted, qat=placement.type, trained_from=checkpoint.sha256)
    cli.echo(f"written: {args.out}")
    recipe_option = f" --recipe {shlex.quote(args.recipe)}" if args.recipe else ""
    options = f"{recipe_option} --precision {placement.type} --calib FOLDER --out DIR"
    cli.echo(f"next:    {cli.command_line('isnet_trt.build')} --ckpt {shlex.quote(str(args.out))}{options}")
    return 0


def _check_out(out: Path, source: Path) -> None:
    """Raise SettingsError, before hours of work, if ``out`` cannot be written or is the checkpoint to start from."""
    existing = next(folder for folder in out.absolute().parents if folder.exists())
    if out.is_dir() or not existing.is_dir() or not may_use(existing, os.W_OK):
        raise SettingsError(f"--out {out}: no file can be made there; name a file in a folder that you may write to")
    if out.exists() and out.samefile(source):
        raise SettingsError(f"--out {out} is the checkpoint to start from, which would be lost; choose another name")


def _source(args: argparse.Namespace, recipe: Recipe) -> Source:
    if recipe.dataset == "scenes":
        from isnet_trt.training.data.scenes import training_scenes

        return training_scenes(SceneSet(count=args.scenes))
    if args.data is None and not is_described(recipe.dataset):
        raise SettingsError(f"{recipe.name} is trained on {recipe.dataset}: name its folder with --data")
    return open_dataset(recipe.dataset, args.data, "train")


def argument_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    p = cli.parser("isnet_trt.training.qat", __doc__ or "")
    defaults = Tuning()
    p.add_argument("--ckpt", type=Path, required=True, metavar="FILE", help="the checkpoint to start from")
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="the checkpoint to write")
    p.add_argument("--recipe", metavar="NAME", help="the model's recipe (default: found from the checkpoint)")
    cli.add_weights(p.add_argument)
    p.add_argument("--data", type=Path, metavar="DIR", help="the dataset's folder (not for drawn scenes)")
    p.add_argument(
        "--flavour", choices=("tensorrt", "fp8"), default="tensorrt", help="int8 or E4M3 (default: tensorrt, int8)"
    )
    p.add_argument("--skip", nargs="+", default=(), metavar="LAYER", help="layers or blocks that stay unrounded")
    p.add_argument("--epochs", type=cli.positive, default=defaults.epochs, help=f"default: {defaults.epochs}")
    p.add_argument("--batch", type=cli.whole(1, 65536), help="crops in a batch (default: the recipe's)")
    p.add_argument(
        "--lr", type=cli.number(1e-12, 10), default=defaults.lr, help=f"first learning rate (default: {defaults.lr:g})"
    )
    p.add_argument("--repeats", type=cli.positive, default=1, help="crops of each picture an epoch (default: 1)")
    p.add_argument("--scenes", type=cli.positive, default=400, help="drawn scenes (default: 400)")
    p.add_argument("--calibration", type=cli.positive, default=64, metavar="N", help="pictures for the scales (64)")
    p.add_argument("--seed", type=cli.seed, default=defaults.seed, help="decides order and crops (default: 0)")
    p.add_argument(
        "--workers", type=cli.whole(0, 1024), default=defaults.workers, help="processes that read and crop (2)"
    )
    p.add_argument("--threads", type=cli.threads, help="CPU threads of this process")
    return p


if __name__ == "__main__":
    sys.exit(cli.run(main))
