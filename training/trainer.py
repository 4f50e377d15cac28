"""The training loop: one process, SGD, checkpoints that a stopped run goes on from with the same numbers."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from isnet_trt.errors import CheckpointError, TrainingError
from isnet_trt.training.checkpoint import save_checkpoint
from isnet_trt.training.data.scenes import SceneSet, scene_loader
from isnet_trt.training.evaluate import HeldOut
from isnet_trt.training.log import CsvLog
from isnet_trt.training.losses import Losses, losses
from isnet_trt.training.model import ISNet, Outputs
from isnet_trt.training.recipes import Recipe
from isnet_trt.training.schedule import poly

LATEST = "checkpoints-epoch-latest.pth"


@dataclass(frozen=True)
class Options:
    """What a run is besides its recipe.

    ``amp`` is None (float32) or "bf16"; ``stop_after`` ends the run early, after that many iterations.
    """

    out: Path
    epochs: int
    batch: int
    seed: int = 0
    workers: int = 2
    amp: str | None = None
    scenes: SceneSet = field(default_factory=SceneSet)
    held_out: int = 12
    stop_after: int | None = None


class Trainer:
    """Trains one recipe; everything random depends on the seed, the epoch and the iteration alone."""

    def __init__(self, recipe: Recipe, options: Options) -> None:
        torch.manual_seed(options.seed)
        self.recipe, self.options = recipe, options
        self.model = ISNet(recipe.architecture).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        rule = recipe.optimiser
        self.optimiser = torch.optim.SGD(
            self.model.parameters(), rule.lr, momentum=rule.momentum, weight_decay=rule.weight_decay
        )
        self.loader, self.sampler = scene_loader(recipe, options.scenes, options.batch, options.seed, options.workers)
        self.held_out = HeldOut(recipe, options.held_out, options.scenes.size)
        self.iteration = 0
        if not len(self.sampler):
            raise TrainingError(f"{self.sampler.items} crops an epoch are fewer than one batch of {options.batch}")

    @property
    def total(self) -> int:
        """Iterations of the whole run."""
        return self.options.epochs * len(self.sampler)

    @property
    def epoch(self) -> int:
        """The epoch (from 1) of the next iteration."""
        return self.iteration // len(self.sampler) + 1

    def run(self) -> bool:
        """Train to the end; False if it was interrupted (the state is saved and can be resumed).

        Raises:
            TrainingError: the loss became NaN or infinite; the checkpoints written before stay.
        """
        self.options.out.mkdir(parents=True, exist_ok=True)
        log = CsvLog(self.options.out, self.recipe.labels.names, self.iteration)
        try:
            with tqdm(total=self.total, initial=self.iteration, unit="it", dynamic_ncols=True) as bar:
                while self.iteration < self._end:
                    self._epoch(bar, log)
        except KeyboardInterrupt:
            self.save()
            print(f"interrupted after iteration {self.iteration}: saved, go on with --resume")
            return False
        return True

    @property
    def _end(self) -> int:
        return min(self.total, self.options.stop_after or self.total)

    def _epoch(self, bar: tqdm, log: CsvLog) -> None:
        epoch = self.sampler.epoch = self.epoch
        self.sampler.skip = self.iteration % len(self.sampler)
        started = time.perf_counter()
        for x, labels in self.loader:
            lr = poly(self.recipe.optimiser, self.iteration, self.total)
            step = self._step(x, labels, lr)
            self.iteration += 1
            taken, started = time.perf_counter() - started, time.perf_counter()
            log.iteration(self.iteration, epoch, lr, step, len(x) / taken)
            bar.set_postfix(
                loss=f"{log.mean_loss:.3f}", lr=f"{lr:.4f}", samples_s=f"{log.mean_rate:.1f}", refresh=False
            )
            bar.update()
            if self.iteration >= self._end:
                break
        log.flush()
        self.save()
        if self.iteration % len(self.sampler) == 0:
            metrics = self.held_out.score(self.model)
            log.epoch(epoch, self.iteration, metrics)
            bar.write(f"epoch {epoch}: held-out mIoU {100 * metrics.miou:.2f} %")

    def _step(self, x: Tensor, labels: Tensor, lr: float) -> Losses:
        """One iteration: forward, loss, backward, SGD."""
        # Dropout must not depend on what ran before, or a resumed run would take another path.
        torch.manual_seed(self.options.seed * 1_000_003 + self.iteration)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.model.train()
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.options.amp == "bf16"):
            outputs = self.model(x)
        step = losses(Outputs(*(scores.float() for scores in outputs)), labels)
        if not math.isfinite(step.total.item()):
            raise TrainingError(
                f"the loss is {step.total.item()} at iteration {self.iteration} (lr {lr:.5f}): training stopped. "
                f"The last good checkpoint is {self.options.out / LATEST}; lower the rate, or train without --amp"
            )
        self.optimiser.zero_grad(set_to_none=True)
        step.total.backward()
        self.optimiser.step()
        return step

    def save(self) -> Path:
        """Write the checkpoint of the running epoch, atomically, and point `LATEST` at it."""
        done = math.ceil(self.iteration / len(self.sampler))
        path = self.options.out / f"checkpoints-epoch-{done}.pth"
        save_checkpoint(
            path,
            self.model.state_dict(),
            optimizer=self.optimiser.state_dict(),
            cur_epoch=done,
            cur_iter=self.iteration,
            recipe=self.recipe.name,
            seed=self.options.seed,
        )
        link = self.options.out / (LATEST + ".tmp")
        link.unlink(missing_ok=True)
        link.symlink_to(path.name)
        link.replace(self.options.out / LATEST)
        return path

    def resume(self) -> None:
        """Go on from `LATEST` in the output folder.

        Raises:
            CheckpointError: there is none, or it belongs to another recipe or seed.
        """
        path = self.options.out / LATEST
        if not path.exists():
            raise CheckpointError(f"{path} does not exist: there is nothing to resume, start without --resume")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        for key, mine in (("recipe", self.recipe.name), ("seed", self.options.seed)):
            if state.get(key) != mine:
                raise CheckpointError(f"{path} was trained with {key} {state.get(key)!r}, not {mine!r}")
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimizer"])
        self.iteration = int(state["cur_iter"])
