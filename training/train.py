"""Train a recipe (here: the demo model on drawn street scenes) on one process.

    python -m isnet_trt.training.train --recipe isnet_demo --out runs/demo
    python -m isnet_trt.training.train --recipe isnet_demo --out runs/demo --resume

Writes a checkpoint per epoch, `checkpoints-epoch-latest.pth`, `iterations.csv` and `epochs.csv` under --out. Ctrl-C
saves and ends with status 0; --resume goes on and gives the numbers that an uninterrupted run would have given.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from isnet_trt import cli
from isnet_trt.errors import SettingsError
from isnet_trt.training.data.scenes import SceneSet
from isnet_trt.training.recipes import recipe
from isnet_trt.training.trainer import Options, Trainer


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, report; 0 also when interrupted (the run can be resumed)."""
    args = _parser().parse_args(argv)
    chosen = recipe(args.recipe)
    if chosen.dataset != "scenes":
        raise SettingsError(
            f"{chosen.name} needs the dataset {chosen.dataset}; only recipes on drawn scenes can be trained yet"
        )
    if args.threads:
        torch.set_num_threads(args.threads)
    options = Options(
        out=args.out,
        epochs=args.epochs or chosen.epochs,
        batch=args.batch or chosen.batch,
        seed=args.seed,
        workers=args.workers,
        amp=args.amp,
        scenes=SceneSet(count=args.scenes, repeats=args.repeats),
        held_out=args.held_out,
        stop_after=args.stop_after,
    )
    trainer = Trainer(chosen, options)
    if args.resume:
        trainer.resume()
    print(f"{chosen.name}: {trainer.total} iterations of {options.batch} crops {chosen.crop[0]}×{chosen.crop[1]}")
    trainer.run()
    return 0


def _parser() -> argparse.ArgumentParser:
    first, *rest = (__doc__ or "").split("\n", 1)
    p = cli.parser("isnet_trt.training.train", first + "".join(rest))
    scenes = SceneSet()
    p.add_argument("--recipe", default="isnet_demo", help="which recipe (default: isnet_demo)")
    p.add_argument("--out", type=Path, required=True, help="folder for checkpoints and logs")
    p.add_argument("--epochs", type=int, help="epochs instead of the recipe's")
    p.add_argument("--batch", type=int, help="crops in a batch instead of the recipe's")
    p.add_argument("--seed", type=int, default=0, help="decides weights, order, crops, dropout (default: 0)")
    p.add_argument("--threads", type=int, help="CPU threads of the training process")
    p.add_argument("--workers", type=int, default=2, help="processes that draw and crop (default: 2)")
    p.add_argument("--amp", choices=["bf16"], help="forward in bfloat16 where that is safe; default: float32")
    p.add_argument("--scenes", type=int, default=scenes.count, help=f"training scenes (default: {scenes.count})")
    p.add_argument(
        "--repeats", type=int, default=scenes.repeats, help=f"crops of each an epoch (default: {scenes.repeats})"
    )
    p.add_argument("--held-out", type=int, default=12, help="scenes scored after each epoch (default: 12)")
    p.add_argument("--stop-after", type=int, metavar="N", help="end after iteration N; --resume goes on from there")
    p.add_argument("--resume", action="store_true", help="go on from the latest checkpoint under --out")
    return p


if __name__ == "__main__":
    sys.exit(cli.run(main))
