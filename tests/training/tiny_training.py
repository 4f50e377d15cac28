"""Training in miniature: recipes with a tiny network, and the command line with them, for processes of their own.

python tests/training/tiny_training.py --recipe tiny …     (the arguments of isnet_trt.training.train)
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from children import PATIENCE, environment, start_python, wait_until

from isnet_trt import cli
from isnet_trt.recipes import DATASETS, RECIPES, Augmentation, Recipe, recipe
from isnet_trt.recipes.architecture import Architecture, Backbone
from isnet_trt.training import train
from isnet_trt.training.data.scenes import SceneSet, held_out_scenes, training_scenes
from isnet_trt.training.run_folder import LATEST
from isnet_trt.training.trainer import Data, Trainer

HOLD_AFTER = "TINY_HOLD_AFTER"
"""Environment variable: the run waits at its first save from this iteration on, until it is let go."""
SCENES = SceneSet(count=4, size=(64, 128), repeats=2)
BACKBONE = Backbone("tiny", "bottleneck", (1, 1, 1, 1), stem_width=4, width=4)


def tiny(name: str, base: str) -> Recipe:
    """The recipe ``base`` with a tiny network, crops of 40×56 and pictures of about 64×128; the rest as it is."""
    model = recipe(base)
    spec = dataclasses.replace(model.architecture, backbone=BACKBONE, head_channels=8, context_channels=8)
    # Turning is for crops of another shape than these pictures have.
    rule = dataclasses.replace(model.augmentation, base=(128, 64), pad_turns=False)
    size = (128, 64) if model.preprocess.keep_ratio else (64, 72)
    preprocess = dataclasses.replace(model.preprocess, size=size)
    return dataclasses.replace(
        model, name=name, architecture=spec, augmentation=rule, preprocess=preprocess, crop=(40, 56)
    )


TINY = dataclasses.replace(
    tiny("tiny", "isnet_demo"),
    architecture=Architecture(
        BACKBONE, recipe("isnet_demo").labels.count, head_channels=8, context_channels=8, shortcut_channels=8
    ),
    augmentation=Augmentation((128, 64), (0.8, 1.2)),
)
TINY_RECIPES = {model.name: model for model in (TINY, *(tiny(f"tiny_{d}", f"isnet_resnet50os8_{d}") for d in DATASETS))}


@functools.cache
def data(scenes: SceneSet = SCENES, held_out: int = 2) -> Data:
    """Drawn scenes of 64×128; kept, since nothing writes to them."""
    return Data(training_scenes(scenes), held_out_scenes(held_out, scenes.size), scenes.repeats)


def start(*args: str, processes: int = 1, hold_after: int | None = None) -> subprocess.Popen[str]:
    """The command line in a process of its own, or in several under torchrun; stdout and stderr are joined.

    With ``hold_after`` the run waits at its first save from that iteration on until `let_go`: what is done to it there
    meets it at that place on a slow machine too.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    variables = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    if hold_after is not None:
        variables[HOLD_AFTER] = str(hold_after)
    command = (*launcher, __file__, *args, "--threads", "1", "--device", "cpu")
    return start_python(*command, stderr=subprocess.STDOUT, env=environment(**variables))


def finished(process: subprocess.Popen[str], seconds: float = PATIENCE) -> tuple[int, str]:
    """Exit status and output; a process that does not end in time is ended and the test fails."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        for child in (*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)):
            child.kill()
        raise
    return process.returncode, output


def train_in_process(*args: str, processes: int = 1) -> str:
    """`start` and `finished`; the output of a run that must end well."""
    status, output = finished(start(*args, processes=processes))
    assert status == 0, output
    return output


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until the condition holds; the process must not end before."""

    def holds() -> bool:
        if condition():
            return True
        assert process.poll() is None, finished(process)
        return False

    wait_until(holds)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The model in a run's latest checkpoint."""
    return torch.load(folder / LATEST, weights_only=True)["model"]


def rows(path: Path) -> list[list[str]]:
    """A CSV file of a run, its head included."""
    with path.open(newline="") as file:
        return list(csv.reader(file))


def without_rates(path: Path) -> list[list[str]]:
    """The rows of iterations.csv without the samples per second, in which runs differ."""
    return [row[:-1] for row in rows(path)]


def let_go(out: Path) -> None:
    """Let a run that writes into ``out`` go on from where it is held."""
    (out / "go").touch()


def hold_after_save(iteration: int) -> None:
    """Make every trainer wait in its first save from ``iteration`` on; signals reach it there."""
    save = Trainer.save

    def save_and_wait(trainer: Trainer) -> None:
        save(trainer)
        while trainer.iteration >= iteration and not (trainer.options.out / "go").exists():
            time.sleep(0.01)

    Trainer.save = save_and_wait  # type: ignore[method-assign]


def main() -> int:
    """``isnet_trt.training.train`` that also knows the tiny recipes and draws tiny scenes."""
    RECIPES.update(TINY_RECIPES)
    train.SceneSet = lambda **changes: dataclasses.replace(SCENES, **changes)  # type: ignore[assignment, misc]
    if HOLD_AFTER in os.environ:
        hold_after_save(int(os.environ[HOLD_AFTER]))
    return cli.run(train.main)


if __name__ == "__main__":
    sys.exit(main())
