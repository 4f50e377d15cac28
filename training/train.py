"""Train a recipe on one of the four datasets, on drawn street scenes, or on pictures of your own.

    python -m isnet_trt.training.train --recipe isnet_demo --out runs/demo
    python -m isnet_trt.training.train --recipe isnet_resnet50os8_ade20k --data ADE20k --pretrained resnet50_v1c.pth
    python -m isnet_trt.training.train --recipe isnet_resnet50os8_ade20k --data ADE20k --resume
    torchrun --nproc-per-node 8 -m isnet_trt.training.train --recipe isnet_resnet101os8_cityscapes --data CityScapes

Writes to --out a checkpoint per epoch, `checkpoints-epoch-latest.pth` (a link to the newest state, also within an
epoch), `iterations.csv`, `epochs.csv` and a TensorBoard record. Ctrl-C and SIGTERM save and end with status 0; --resume
continues the run and gives the numbers of an uninterrupted one. --batch counts the crops of all processes together;
several machines need a common --out folder. docs/training.md has the details.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isnet_trt import cli
from isnet_trt.datasets.layouts import open_dataset
from isnet_trt.errors import SettingsError, needs
from isnet_trt.recipes import Recipe, is_described, recipe
from isnet_trt.training.group import process_group
from isnet_trt.training.options import Options, SceneSet
from isnet_trt.training.scenes import HELD_OUT_COUNT

if TYPE_CHECKING:  # their modules import torch, which --help does without
    from isnet_trt.training.trainer import Data, Trainer


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status, which is 0 also for an interrupted run (it can be resumed)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--qat" in arguments:
        from isnet_trt.training import qat

        arguments.remove("--qat")
        return qat.main(arguments)
    args = argument_parser().parse_args(arguments)
    with needs("training", "train"):
        import torch

        from isnet_trt.training.trainer import Trainer
    chosen = recipe(args.recipe)
    if args.threads:
        torch.set_num_threads(args.threads)
    # The published models were trained in full float32; --amp trains faster.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    with process_group(args.device, args.timeout) as group:
        trainer = Trainer(chosen, _options(args, chosen), _data(args, chosen), group)
        started = _begin(trainer, args)
        if group.first:
            cli.echo("\n".join((*started, _announcement(trainer))))
        ended = trainer.run()
        if ended and group.first:
            cli.echo(_next_command(trainer, args.recipe))
    return 0


def _next_command(trainer: Trainer, name: str) -> str:
    """The command that builds a bundle from the run; the recipe of an own file has to be named."""
    checkpoint = shlex.quote(str(trainer.files.latest))
    options = f" --recipe {shlex.quote(name)}" if is_described(name) else ""
    return f"next: {cli.command_line('isnet_trt.build')} --ckpt {checkpoint}{options} --out DIR"


def _options(args: argparse.Namespace, chosen: Recipe) -> Options:
    """The options given on the command line, or the recipe's values; the command line has `Options`' own names."""
    options: dict[str, Any] = {field.name: getattr(args, field.name) for field in dataclasses.fields(Options)}
    defaults = {"out": Path("runs") / chosen.name, "epochs": chosen.epochs, "batch": chosen.batch}
    return Options(**options | {name: options[name] or default for name, default in defaults.items()})


def _data(args: argparse.Namespace, chosen: Recipe) -> Data:
    from isnet_trt.training.data.scenes import held_out_scenes, training_scenes
    from isnet_trt.training.trainer import Data

    if chosen.dataset == "scenes":
        scenes = SceneSet(count=args.scenes, repeats=args.repeats or SceneSet().repeats)
        return Data(training_scenes(scenes), held_out_scenes(args.held_out, scenes.size), scenes.repeats)
    train, val = (open_dataset(chosen.dataset, args.data, split) for split in ("train", "val"))
    return Data(train, val, args.repeats or 1)


def _begin(trainer: Trainer, args: argparse.Namespace) -> list[str]:
    """Resume an earlier run, or load starting weights; return messages about the latter."""
    from isnet_trt.training.pretrained import load_backbone, load_matching

    occupied = trainer.files.occupied
    if args.resume == "must" or (args.resume == "auto" and occupied):
        trainer.resume()
        return []
    if occupied:
        raise SettingsError(
            f"{trainer.files.folder} holds a run already: go on with it by --resume, or name another folder by --out"
        )
    if args.pretrained:
        return [load_backbone(trainer.model, args.pretrained).describe()]
    return [load_matching(trainer.model, args.init, trainer.recipe.labels.names).describe()] if args.init else []


def _announcement(trainer: Trainer) -> str:
    options, group, crop = trainer.options, trainer.group, trainer.recipe.crop
    shared = f" over {group.size} processes" if group.size > 1 else ""
    return (
        f"{trainer.recipe.name} on {group.device}{shared}: iterations {trainer.iteration + 1} to {trainer.total}, "
        f"{options.batch} crops {crop[0]}×{crop[1]} each, into {options.out}"
    )


def argument_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = cli.parser("isnet_trt.training.train", __doc__ or "")
    defaults, scenes = Options(Path(), 1, 1), SceneSet()
    add = parser.add_argument_group("the run").add_argument
    add("--recipe", default="isnet_demo", help="name or .yaml file (default: isnet_demo)")
    qat = "fine-tune a checkpoint for an eight-bit engine instead; takes the options of isnet_trt.training.qat"
    add("--qat", action="store_true", help=qat)
    add("--data", type=Path, metavar="DIR", help="the dataset's folder (not for drawn scenes)")
    add("--out", type=Path, help="folder for checkpoints and logs (default: runs/RECIPE)")
    resume = "continue from the latest checkpoint under --out; 'auto': start anew if there is none"
    add("--resume", nargs="?", const="must", choices=["must", "auto"], help=resume)
    add("--epochs", type=cli.positive, help="epochs instead of the recipe's")
    add("--batch", type=cli.whole(1, 65536), help="crops in a batch, of all processes, instead of the recipe's")
    add("--seed", type=cli.seed, default=0, help="decides weights, order, crops, dropout (default: 0)")
    add("--stop-after", type=cli.positive, metavar="N", help="end after iteration N; --resume continues")
    add = parser.add_argument_group("starting weights").add_mutually_exclusive_group().add_argument
    add("--pretrained", type=Path, metavar="FILE", help="start the backbone from these ImageNet weights")
    add("--init", type=Path, metavar="CKPT", help="start from this ISNet checkpoint, also one of other classes")
    add = parser.add_argument_group("speed").add_argument
    add("--device", choices=["cpu", "cuda"], help="where to compute (default: the GPU if there is one)")
    add("--amp", choices=["bf16", "fp16"], help="mixed precision; default: float32 without TF32")
    compiled = "compile the network: minutes at the start, so for runs of hours; the gain is to be measured first"
    add("--compile", action="store_true", help=f"{compiled} (python -m benchmarks training)")
    add("--threads", type=cli.threads, help="CPU threads of the training process")
    add(
        "--workers", type=cli.whole(0, 1024), default=defaults.workers, help="processes that read and crop (default: 2)"
    )
    add = parser.add_argument_group("saving and scoring").add_argument
    save = f"save every N iterations besides each epoch, 0: not (default: {defaults.save_every})"
    add("--save-every", type=cli.natural, metavar="N", default=defaults.save_every, help=save)
    add("--keep", type=cli.positive, metavar="N", help="keep the last N epochs' checkpoints (default: all)")
    score = "score held-out pictures every N epochs (default: 1)"
    add("--val-every", type=cli.positive, metavar="N", default=1, help=score)
    add("--val-limit", type=cli.natural, metavar="N", help="score the first N held-out pictures only")
    wait = f"seconds to wait for a worker or another process (default: {defaults.timeout:g})"
    add("--timeout", type=cli.number(1e-3, 1e7), default=defaults.timeout, help=wait)
    add = parser.add_argument_group("drawn scenes").add_argument
    add("--scenes", type=cli.positive, default=scenes.count, help=f"number of scenes (default: {scenes.count})")
    crops = f"crops of each picture an epoch (default: {scenes.repeats} for drawn scenes, else 1)"
    add("--repeats", type=cli.positive, help=crops)
    held_out = f"scenes scored after each epoch (default: {HELD_OUT_COUNT})"
    add("--held-out", type=cli.positive, default=HELD_OUT_COUNT, help=held_out)
    return parser


if __name__ == "__main__":
    sys.exit(cli.run(main))
