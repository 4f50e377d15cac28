"""The training loop: SGD on one process or many, and checkpoints that a stopped run goes on from."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from isnet_trt.datasets.picture_set import Source
from isnet_trt.errors import CheckpointError, TrainingError
from isnet_trt.recipes import IGNORE, Recipe
from isnet_trt.training.data.augment import Augment
from isnet_trt.training.data.crops import CropDataset, EpochSampler, batches, crop_loader
from isnet_trt.training.diagnose import first_not_finite
from isnet_trt.training.distributed import Processes, lost_process, synchronised
from isnet_trt.training.interrupt import StopWish
from isnet_trt.training.log import Step
from isnet_trt.training.losses import losses
from isnet_trt.training.model import ISNet, Outputs
from isnet_trt.training.progress import Record
from isnet_trt.training.run_folder import LATEST, RunFolder
from isnet_trt.training.validate import Validator

_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
_ALONE = Processes()


@dataclass(frozen=True)
class Options:
    """What a run is besides its recipe and its data.

    Attributes:
        out: folder of checkpoints and logs.
        epochs: how often the training set is gone through.
        batch: crops in a batch, of all processes together.
        seed: decides initial weights, order, crops and dropout.
        workers: processes that read and crop, for each training process.
        amp: None (float32), "bf16" or "fp16" (with loss scaling).
        compile: hand the network to torch.compile.
        save_every: save within an epoch after so many iterations, besides after each epoch; 0: never.
        keep: how many epochs' checkpoints stay; None: all.
        val_every: score the held-out pictures after every so many epochs, and after the last.
        val_limit: the first so many held-out pictures; None: all.
        stop_after: end the run early, after that many iterations.
        timeout: seconds that a batch of the workers may take.
    """

    out: Path
    epochs: int
    batch: int
    seed: int = 0
    workers: int = 2
    amp: str | None = None
    compile: bool = False
    save_every: int = 500
    keep: int | None = None
    val_every: int = 1
    val_limit: int | None = None
    stop_after: int | None = None
    timeout: float = 600


@dataclass(frozen=True)
class Data:
    """Training and held-out pictures; each training picture gives ``repeats`` crops an epoch."""

    train: Source
    val: Source
    repeats: int = 1


class Trainer:
    """Trains one recipe; everything random depends on the seed, the epoch and the iteration alone.

    Raises:
        TrainingError: the batch cannot be shared by the processes, or is larger than an epoch.
    """

    def __init__(self, recipe: Recipe, options: Options, data: Data, here: Processes = _ALONE) -> None:
        torch.manual_seed(options.seed)
        self.recipe, self.options, self.here = recipe, options, here
        model = synchronised(ISNet(recipe.architecture), here)
        self.model: ISNet = model.to(here.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        rule = recipe.optimiser
        # One group: weight decay on everything, batch-norm and biases included.
        self.optimiser = torch.optim.SGD(
            self.model.parameters(), rule.lr, momentum=rule.momentum, weight_decay=rule.weight_decay
        )
        self.scaler = torch.amp.GradScaler(here.device.type, enabled=options.amp == "fp16")
        dataset = CropDataset(data.train, Augment.of(recipe), options.seed, data.repeats)
        self.sampler = EpochSampler(len(dataset), options.batch, options.seed, here.rank, here.size)
        _check(recipe, self.sampler)
        pinned = here.device.type == "cuda"
        self.loader = crop_loader(dataset, self.sampler, options.workers, options.timeout, pinned)
        self.validator = Validator(data.val, recipe.preprocess, recipe.labels.count, options.val_limit, here)
        self.files = RunFolder(options.out, options.keep)
        self.iteration = 0
        self._saved: int | None = None

    @functools.cached_property
    def network(self) -> nn.Module:
        """What a batch is put through: the model, compiled and shared among processes as the run is set up."""
        network: nn.Module = self.model
        if self.here.size > 1:
            cuda = self.here.device.type == "cuda"
            network = DistributedDataParallel(
                network,
                device_ids=[self.here.device.index] if cuda else None,
                broadcast_buffers=False,  # synchronised batch-norm keeps them equal
                gradient_as_bucket_view=True,
            )
        # Not in place: scoring pictures of many sizes would be compiled anew for each.
        return torch.compile(network) if self.options.compile else network  # type: ignore[return-value]

    @property
    def total(self) -> int:
        """Iterations of the whole run."""
        return self.options.epochs * len(self.sampler)

    @property
    def epoch(self) -> int:
        """The epoch (from 1) of the next iteration."""
        return self.iteration // len(self.sampler) + 1

    @property
    def _end(self) -> int:
        return min(self.total, self.options.stop_after or self.total)

    def run(self) -> bool:
        """Train to the end; False if Ctrl-C or SIGTERM ended it (the state is saved and can be resumed).

        Raises:
            TrainingError: the loss became NaN or infinite, memory ran out, or another process died; the checkpoints
                written before stay.
        """
        with StopWish() as stop, self._record() as record:
            if self._owes_score(record):
                self._score(record, stop)
            while self.iteration < self._end and not self._agreed(stop):
                self._epoch(record, stop)
            if stopped := self._agreed(stop):
                record.say(f"interrupted after iteration {self.iteration}: saved, go on with --resume")
            self.save()
        return not stopped

    def _record(self) -> Record:
        names, batch = self.recipe.labels.names, self.options.batch
        return Record(self.options.out, names, self.iteration, self.total, batch, active=self.here.first)

    def _agreed(self, stop: StopWish) -> bool:
        """Whether any process was told to stop; the same answer in all of them."""
        return self.here.sum([stop.asked is not None])[0] > 0

    def _epoch(self, record: Record, stop: StopWish) -> None:
        """Go through the rest of an epoch, to its end or to the end of the run."""
        self.sampler.epoch, self.sampler.skip = self.epoch, self.iteration % len(self.sampler)
        for x, labels in batches(self.loader):
            labelled, wish = self.here.sum([int((labels != IGNORE).sum()), stop.asked is not None])
            if wish:
                return
            self._iterate(x, labels, labelled, record)
            every = self.options.save_every
            if self.iteration >= self._end:
                break
            if every and self.iteration % every == 0 and self.iteration % len(self.sampler):
                record.flush()
                self.save()
        record.flush()
        self.save()
        if self._owes_score(record):
            self._score(record, stop)

    def _iterate(self, x: Tensor, labels: Tensor, labelled: float, record: Record) -> None:
        lr, epoch = self.recipe.optimiser.rate(self.iteration, self.total), self.epoch
        step = self._step(x, labels, lr, labelled) if labelled else None
        self.iteration += 1
        if step is None:  # its loss would be 0 / 0
            record.say(f"iteration {self.iteration}: no crop of the batch has a labelled pixel, left out")
        record.iteration(self.iteration, epoch, lr, step)

    def _step(self, x: Tensor, labels: Tensor, lr: float, labelled: float) -> Step:
        """One iteration: forward, loss, backward, SGD; ``labelled`` pixels count in the whole batch."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.model.train()
        x = x.to(self.here.device, non_blocking=True, memory_format=torch.channels_last)
        labels = labels.to(self.here.device, non_blocking=True)
        # Averaging gradients over the processes divides by their number once more than the mean over pixels asks for.
        count = labelled / self.here.size if self.here.size > 1 else None
        with _step_errors(self.here, self.options.batch):
            self._seed()
            with self._autocast():
                outputs = self.network(x)
            parts = losses(Outputs(*(scores.float() for scores in outputs)), labels, count)
            values = torch.stack([parts.total, parts.stage2, parts.stage1, parts.auxiliary]).tolist()
            total, stage2, stage1, auxiliary = (v / self.here.size for v in self.here.sum(values))
            if not math.isfinite(total):
                raise TrainingError(self._diagnosis(total, x, lr))
            self.optimiser.zero_grad(set_to_none=True)
            self.scaler.scale(parts.total).backward()
            self.scaler.step(self.optimiser)
            self.scaler.update()
        return total, stage2, stage1, auxiliary

    def _seed(self) -> None:
        # Dropout must not depend on what ran before, or a resumed run would take another path: no generator's state
        # needs to be in a checkpoint. Each process drops channels of its own.
        torch.manual_seed(self.options.seed * 1_000_003 + self.iteration + (self.here.rank << 40))

    def _autocast(self) -> torch.autocast:
        amp = self.options.amp
        return torch.autocast(self.here.device.type, _AMP[amp] if amp else None, enabled=amp is not None)

    def _diagnosis(self, loss: float, x: Tensor, lr: float) -> str:
        self._seed()
        with self._autocast():
            culprit = first_not_finite(self.model, x, self.here)
        return (
            f"the loss is {loss} at iteration {self.iteration + 1} (lr {lr:.5f}): training stopped. First tensor that "
            f"is not finite: {culprit}. The last good checkpoint is {self.options.out / LATEST}; "
            "lower the rate, or train without --amp"
        )

    def _owes_score(self, record: Record) -> bool:
        """Whether an epoch has just ended whose held-out pictures are to be scored and have not been."""
        if self.iteration == 0 or self.iteration % len(self.sampler):
            return False
        due = (self.epoch - 1) % self.options.val_every == 0 or self.iteration == self.total
        return due and self.here.sum([record.scored(self.iteration)])[0] == 0

    def _score(self, record: Record, stop: StopWish) -> None:
        metrics = self.validator.score(self.model, lambda: stop.asked is not None)
        if metrics is not None:
            record.epoch(self.epoch - 1, self.iteration, metrics)
        record.resting()

    def save(self) -> None:
        """Write the checkpoint of this moment, if it is not written yet; of several processes the first does."""
        if self.here.first and self._saved != self.iteration:
            self.files.save(
                self.model.state_dict(),
                self.iteration // len(self.sampler),
                whole=self.iteration % len(self.sampler) == 0,
                optimizer=self.optimiser.state_dict(),
                cur_iter=self.iteration,
                **({"grad_scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {}),
                **self._identity(),
            )
        self._saved = self.iteration

    def _identity(self) -> dict[str, str | int]:
        """What has to be the same when a run goes on: the order of the samples and the schedule hang on it."""
        sampler = self.sampler
        return {"recipe": self.recipe.name, "seed": sampler.seed, "batch": sampler.batch, "crops": sampler.items}

    def resume(self) -> None:
        """Go on from `LATEST` in the output folder, in mid-epoch too.

        Raises:
            CheckpointError: there is none, or it belongs to another recipe, seed, batch or training set.
        """
        state = self.files.read(**self._identity())
        try:
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimizer"])
            self.iteration = self._saved = int(state["cur_iter"])
            if self.scaler.is_enabled() and "grad_scaler" in state:
                self.scaler.load_state_dict(state["grad_scaler"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{self.files.latest} is no training state of {self.recipe.name}: {error}") from error


def _check(recipe: Recipe, sampler: EpochSampler) -> None:
    """Refuse a batch that cannot be trained on."""
    batch, ranks = sampler.batch, sampler.ranks
    if batch < 1 or batch % ranks:
        raise TrainingError(f"a batch of {batch} cannot be shared by {ranks} processes: --batch must be a multiple")
    if not len(sampler):
        raise TrainingError(f"{sampler.items} crops an epoch are fewer than one batch of {batch}: lower --batch")
    if batch == 1 and recipe.architecture.backbone.block == "split_attention":
        raise TrainingError(
            "ResNeSt's batch-norm over pooled features needs at least 2 crops in a batch: raise --batch"
        )


@contextlib.contextmanager
def _step_errors(here: Processes, batch: int) -> Iterator[None]:
    """Memory that ran out and processes that died, in words."""
    try:
        with lost_process(here):
            yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the memory of {here.device} is not enough for {batch // here.size} crops on it: lower --batch, use more "
            f"GPUs, or --amp bf16 ({str(error).splitlines()[0]})"
        ) from error
