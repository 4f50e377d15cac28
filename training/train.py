"""Train a recipe: on one of the four datasets, on drawn street scenes, or on pictures of your own.

    python -m isnet_trt.training.train --recipe isnet_demo --out runs/demo
    python -m isnet_trt.training.train --recipe isnet_resnet50os8_ade20k --data ADE20k --pretrained resnet50_v1c.pth
    python -m isnet_trt.training.train --recipe isnet_resnet50os8_ade20k --data ADE20k --resume
    torchrun --nproc-per-node 8 -m isnet_trt.training.train --recipe isnet_resnet101os8_cityscapes --data CityScapes

Under --out it leaves a checkpoint per epoch, `checkpoints-epoch-latest.pth` (a link to the newest state, also of the
middle of an epoch), `iterations.csv`, `epochs.csv` and a TensorBoard record. Ctrl-C and SIGTERM save and end with
status 0; --resume goes on and gives the numbers that an uninterrupted run would have given. --batch counts the crops
of all processes together; several machines need a common --out folder. docs/training.md has the details.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from isnet_trt import cli
from isnet_trt.datasets.layouts import open_dataset
from isnet_trt.errors import SettingsError
from isnet_trt.recipes import Recipe, recipe
from isnet_trt.training.data.scenes import SceneSet, held_out_scenes, training_scenes
from isnet_trt.training.distributed import Processes, processes
from isnet_trt.training.pretrained import load_backbone, load_matching
from isnet_trt.training.scenes import HELD_OUT_COUNT
from isnet_trt.training.trainer import Data, Options, Trainer


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, report; 0 also when interrupted (the run can be resumed)."""
    given = list(sys.argv[1:] if argv is None else argv)
    if "--qat" in given:
        from isnet_trt.training import qat

        given.remove("--qat")
        return qat.main(given)
    args = _parser().parse_args(given)
    chosen = recipe(args.recipe)
    if args.threads:
        torch.set_num_threads(args.threads)
    # The published models were trained in full float32; --amp is the way to be quicker.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    with processes(args.device, args.timeout) as here:
        trainer = Trainer(chosen, _options(args, chosen), _data(args, chosen), here)
        _begin(trainer, args)
        if here.first:
            print(_announcement(trainer))
        trainer.run()
    return 0


def _options(args: argparse.Namespace, chosen: Recipe) -> Options:
    return Options(
        out=args.out or Path("runs") / chosen.name,
        epochs=args.epochs or chosen.epochs,
        batch=args.batch or chosen.batch,
        seed=args.seed,
        workers=args.workers,
        amp=args.amp,
        compile=args.compile,
        save_every=args.save_every,
        keep=args.keep,
        val_every=args.val_every,
        val_limit=args.val_limit,
        stop_after=args.stop_after,
        timeout=args.timeout,
    )


def _data(args: argparse.Namespace, chosen: Recipe) -> Data:
    if chosen.dataset == "scenes":
        scenes = SceneSet(count=args.scenes, repeats=args.repeats or SceneSet().repeats)
        return Data(training_scenes(scenes), held_out_scenes(args.held_out, scenes.size), scenes.repeats)
    train, val = (open_dataset(chosen.dataset, args.data, split) for split in ("train", "val"))
    return Data(train, val, args.repeats or 1)


def _begin(trainer: Trainer, args: argparse.Namespace) -> None:
    """Put the trainer where the run is to start: in the middle of an earlier one, or at first weights."""
    there = trainer.files.latest.exists()
    if args.resume == "auto" and not there:
        args.resume = None
    if args.resume:
        trainer.resume()
        return
    if there:
        raise SettingsError(
            f"{trainer.files.folder} holds a run already: go on with it by --resume, or name another folder by --out"
        )
    for load, path in ((load_backbone, args.pretrained), (load_matching, args.init)):
        if path:
            _say(trainer.here, load(trainer.model, path).describe())


def _announcement(trainer: Trainer) -> str:
    options, here, crop = trainer.options, trainer.here, trainer.recipe.crop
    shared = f" over {here.size} processes" if here.size > 1 else ""
    return (
        f"{trainer.recipe.name} on {here.device}{shared}: iterations {trainer.iteration + 1} to {trainer.total}, "
        f"{options.batch} crops {crop[0]}×{crop[1]} each, into {options.out}"
    )


def _say(here: Processes, text: str) -> None:
    if here.first:
        print(text)


def _parser() -> argparse.ArgumentParser:
    first, *rest = (__doc__ or "").split("\n", 1)
    p = cli.parser("isnet_trt.training.train", first + "".join(rest))
    defaults, scenes = Options(Path(), 1, 1), SceneSet()
    run = p.add_argument_group("the run")
    run.add_argument("--recipe", default="isnet_demo", help="which recipe (default: isnet_demo)")
    run.add_argument(
        "--qat",
        action="store_true",
        help="fine-tune a checkpoint for an eight-bit engine instead; takes the options of isnet_trt.training.qat",
    )
    run.add_argument("--data", type=Path, metavar="DIR", help="the dataset's folder (not for drawn scenes)")
    run.add_argument("--out", type=Path, help="folder for checkpoints and logs (default: runs/RECIPE)")
    run.add_argument(
        "--resume",
        nargs="?",
        const="must",
        choices=["must", "auto"],
        help="go on from the latest checkpoint under --out; 'auto': start anew if there is none",
    )
    run.add_argument("--epochs", type=cli.positive, help="epochs instead of the recipe's")
    run.add_argument("--batch", type=cli.positive, help="crops in a batch, of all processes, instead of the recipe's")
    run.add_argument("--seed", type=int, default=0, help="decides weights, order, crops, dropout (default: 0)")
    run.add_argument("--stop-after", type=cli.positive, metavar="N", help="end after iteration N; --resume goes on")
    first_weights = run.add_mutually_exclusive_group()
    first_weights.add_argument(
        "--pretrained", type=Path, metavar="FILE", help="start the backbone from these ImageNet weights"
    )
    first_weights.add_argument(
        "--init", type=Path, metavar="CKPT", help="start from this ISNet checkpoint, also one of other classes"
    )
    speed = p.add_argument_group("speed")
    speed.add_argument("--device", choices=["cpu", "cuda"], help="where to compute (default: the GPU if there is one)")
    speed.add_argument("--amp", choices=["bf16", "fp16"], help="mixed precision; default: float32 without TF32")
    speed.add_argument("--compile", action="store_true", help="compile the network (minutes at the start)")
    speed.add_argument("--threads", type=cli.positive, help="CPU threads of the training process")
    speed.add_argument(
        "--workers", type=_natural, default=defaults.workers, help="processes that read and crop (default: 2)"
    )
    keeping = p.add_argument_group("saving and scoring")
    keeping.add_argument(
        "--save-every",
        type=_natural,
        metavar="N",
        default=defaults.save_every,
        help=f"save every N iterations besides each epoch, 0: not (default: {defaults.save_every})",
    )
    keeping.add_argument(
        "--keep", type=cli.positive, metavar="N", help="keep the last N epochs' checkpoints (default: all)"
    )
    keeping.add_argument(
        "--val-every",
        type=cli.positive,
        metavar="N",
        default=1,
        help="score held-out pictures every N epochs (default: 1)",
    )
    keeping.add_argument("--val-limit", type=_natural, metavar="N", help="score the first N held-out pictures only")
    keeping.add_argument(
        "--timeout",
        type=float,
        default=defaults.timeout,
        help=f"seconds to wait for a worker or another process (default: {defaults.timeout:g})",
    )
    drawn = p.add_argument_group("drawn scenes")
    drawn.add_argument("--scenes", type=cli.positive, default=scenes.count, help=f"how many (default: {scenes.count})")
    drawn.add_argument(
        "--repeats",
        type=cli.positive,
        help=f"crops of each picture an epoch (default: {scenes.repeats} for drawn scenes, else 1)",
    )
    drawn.add_argument(
        "--held-out",
        type=cli.positive,
        default=HELD_OUT_COUNT,
        help=f"scenes scored after each epoch (default: {HELD_OUT_COUNT})",
    )
    return p


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} must be 0 or more")
    return value


if __name__ == "__main__":
    sys.exit(cli.run(main))
