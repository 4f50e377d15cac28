"""The training loop: SGD in one process or many, and checkpoints from which a stopped run is resumed."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from isnet_trt.datasets.coverage import doubts, refuse_unlabelled, refuse_unreadable_files, shared_pictures, survey
from isnet_trt.datasets.picture_set import PictureSet, Source
from isnet_trt.errors import CheckpointError, TrainingError, is_out_of_memory
from isnet_trt.files import make_folder
from isnet_trt.recipes import IGNORE, Recipe
from isnet_trt.training import optimiser
from isnet_trt.training.classes import Classes
from isnet_trt.training.data.augment import Augment
from isnet_trt.training.data.crops import CropDataset, EpochSampler, batches, crop_loader
from isnet_trt.training.diagnose import first_not_finite
from isnet_trt.training.distributed import synchronised
from isnet_trt.training.group import Group, lost_process
from isnet_trt.training.interrupt import StopRequest
from isnet_trt.training.log import Losses, RunLog, Span
from isnet_trt.training.losses import losses
from isnet_trt.training.model import ISNet, Outputs
from isnet_trt.training.options import Options
from isnet_trt.training.resume import OwnState, check_state
from isnet_trt.training.run_folder import LATEST, RunFolder
from isnet_trt.training.validate import Validator

_log = logging.getLogger(__name__)
_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


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

    def __init__(self, recipe: Recipe, options: Options, data: Data, group: Group | None = None) -> None:
        # Before the model is created, which draws its initial weights.
        torch.manual_seed(options.seed)
        self.recipe, self.options, self.data, self.group = recipe, options, data, group or Group()
        group = self.group
        model = synchronised(ISNet(recipe.architecture), group)
        self.model: ISNet = model.to(group.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = optimiser.sgd(self.model, recipe.optimiser, fused=group.cuda)
        self.scaler = torch.amp.GradScaler("cuda" if group.cuda else "cpu", enabled=options.amp == "fp16")
        dataset = CropDataset(data.train, Augment.of(recipe), options.seed, data.repeats)
        self.sampler = EpochSampler(len(dataset), options.batch, options.seed, group.rank, group.size)
        _check(recipe, self.sampler)
        pinned = group.cuda
        self.loader = crop_loader(dataset, self.sampler, options.workers, options.timeout, pinned)
        self.validator = Validator(data.val, recipe.preprocess, recipe.labels.count, options.val_limit, group)
        self.files = RunFolder(options.out, options.keep)
        self.iteration = 0
        self._saved: int | None = None
        self._log: RunLog | None = None
        self._rows: dict[str, int] = {}

    @functools.cached_property
    def network(self) -> nn.Module:
        """The module that a batch is passed to: the model, wrapped for several processes and compiled if asked for."""
        network: nn.Module = self.model
        if self.group.size > 1:
            network = DistributedDataParallel(
                network,
                device_ids=[torch.device(self.group.device)] if self.group.cuda else None,
                broadcast_buffers=False,  # synchronised batch-norm keeps them equal
                gradient_as_bucket_view=True,
            )
        # Scoring uses the model itself: pictures of many sizes would each be compiled anew.
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
        """Train to the end; return False if Ctrl-C or SIGTERM ended it (the state is saved and can be resumed).

        Raises:
            DataError: a file cannot be read, or no training picture or no held-out picture has a labelled pixel;
                nothing was written.
            TrainingError: the loss became NaN or infinite, memory ran out, or another process died; earlier checkpoints
                stay.
        """
        self._check_labels()
        make_folder(self.options.out, "--out")
        span = Span(self.iteration, self.total, self.options.batch)
        names, first = self.recipe.labels.names, self.group.first
        with StopRequest() as stop, RunLog(self.options.out, names, span, first, self._rows) as log:
            self._log = log
            # Due here: the run was stopped between an epoch's checkpoint and its scoring.
            if self._score_is_due(log):
                self._score(log, stop)
            while self.iteration < self._end and not self._any_stop(stop):
                self._epoch(log, stop)
            if stopped := self._any_stop(stop):
                log.say(f"interrupted after iteration {self.iteration}: saved, go on with --resume")
            self.save()
        return not stopped

    def _check_labels(self) -> None:
        """Refuse sets without labels or with files that cannot be read; warn of labels that are probably not meant."""
        data, classes = self.data, self.recipe.labels.count
        warnings = []
        for source, part, count in ((data.train, "training", None), (data.val, "validation", self.validator.count)):
            if count == 0:  # --val-limit 0: nothing is scored
                continue
            refuse_unreadable_files(source, count)
            coverage = survey(source, classes, count)
            refuse_unlabelled(source, coverage, part)
            warnings += doubts(source, coverage) if isinstance(source, PictureSet) else []
        if isinstance(data.train, PictureSet) and isinstance(data.val, PictureSet):
            warnings += shared_pictures(data.train, data.val)
        if self.group.first:
            for warning in warnings:
                _log.warning("%s", warning)

    def _any_stop(self, stop: StopRequest) -> bool:
        """Whether any process was asked to stop; all processes get the same result."""
        return self.group.sum([stop.made])[0] > 0

    def _epoch(self, log: RunLog, stop: StopRequest) -> None:
        """Train for the rest of an epoch, to its end or to the end of the run."""
        self.sampler.epoch, self.sampler.skip = self.epoch, self.iteration % len(self.sampler)
        used = self.sampler.skip > 0
        for x, labels in batches(self.loader):
            # One message for both: in every exchange the processes wait for each other.
            labelled, stops = self.group.sum([int((labels != IGNORE).sum()), stop.made])
            if stops:
                return
            self._iterate(x, labels, labelled, log)
            used = used or labelled > 0
            every = self.options.save_every
            if self.iteration >= self._end:
                break
            # The end of an epoch is saved below, under the epoch's name.
            if every and self.iteration % every == 0 and self.iteration % len(self.sampler):
                log.flush()
                self.save()
        if not used and self.iteration % len(self.sampler) == 0:
            raise TrainingError(
                f"no crop of epoch {self.epoch - 1} has a labelled pixel, so nothing was trained: label more of the "
                "pictures, or give the recipe a larger crop"
            )
        # Rows before the checkpoint: a resumed run can drop rows beyond it, but not write missing ones.
        log.flush()
        self.save()
        if self._score_is_due(log):
            self._score(log, stop)

    def _iterate(self, x: Tensor, labels: Tensor, labelled: float, log: RunLog) -> None:
        lr, epoch = self.recipe.optimiser.rate(self.iteration, self.total), self.epoch
        step = self._step(x, labels, lr, labelled) if labelled else None
        self.iteration += 1
        if step is None:  # its loss would be 0 / 0
            log.say(f"iteration {self.iteration}: no crop of the batch has a labelled pixel, left out")
        log.iteration(self.iteration, epoch, lr, step)

    def _step(self, x: Tensor, labels: Tensor, lr: float, labelled: float) -> Losses:
        """One iteration: forward, loss, backward, SGD; ``labelled`` counts the labelled pixels of all processes."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.model.train()
        x = x.to(self.group.device, non_blocking=True, memory_format=torch.channels_last)
        labels = labels.to(self.group.device, non_blocking=True)
        # DistributedDataParallel averages gradients over the processes, where the mean over pixels needs their sum.
        count = labelled / self.group.size if self.group.size > 1 else None
        with _step_errors(self.group, self.options.batch):
            # Here, so that the forward pass has their memory.
            self.optimiser.zero_grad(set_to_none=True)
            self._seed()
            with self._autocast():
                outputs = self.network(x)
            parts = losses(Outputs(*(scores.float() for scores in outputs)), labels, count)
            # One copy from the GPU instead of four that each wait for it.
            values = torch.stack([parts.total, parts.stage2, parts.stage1, parts.auxiliary]).tolist()
            total, stage2, stage1, auxiliary = (v / self.group.size for v in self.group.sum(values))
            # Before the step, which would carry NaN into the weights. All processes have the same sum and stop
            # together.
            if not math.isfinite(total):
                raise TrainingError(self._diagnosis(total, x, lr))
            self.scaler.scale(parts.total).backward()
            self.scaler.step(self.optimiser)
            self.scaler.update()
        return total, stage2, stage1, auxiliary

    def _seed(self) -> None:
        # Dropout must not depend on what ran before, or a resumed run would take another path. So no generator's state
        # has to be in a checkpoint. Each process drops channels of its own.
        torch.manual_seed(self.options.seed * 1_000_003 + self.iteration + (self.group.rank << 40))

    def _autocast(self) -> torch.autocast:
        amp = self.options.amp
        return torch.autocast("cuda" if self.group.cuda else "cpu", _AMP[amp] if amp else None, enabled=amp is not None)

    def _diagnosis(self, loss: float, x: Tensor, lr: float) -> str:
        self._seed()
        with self._autocast():
            culprit = first_not_finite(self.model, x, self.group)
        return (
            f"the loss is {loss} at iteration {self.iteration + 1} (lr {lr:.5f}): training stopped. First tensor that "
            f"is not finite: {culprit}. The last good checkpoint is {self.options.out / LATEST}; "
            "lower the rate, or train without --amp"
        )

    def _score_is_due(self, log: RunLog) -> bool:
        """Whether an epoch has just ended after which the held-out pictures are to be scored and have not been."""
        if self.iteration == 0 or self.iteration % len(self.sampler) or not self.validator.count:
            return False
        due = (self.epoch - 1) % self.options.val_every == 0 or self.iteration == self.total
        return due and self.group.sum([log.scored(self.iteration)])[0] == 0

    def _score(self, log: RunLog, stop: StopRequest) -> None:
        metrics = self.validator.score(self.model, lambda: stop.made)
        if metrics is not None:
            log.epoch(self.epoch - 1, self.iteration, metrics)
        log.restart_clock()

    def save(self) -> None:
        """Write a checkpoint of the present state unless it is written; of several processes the first writes."""
        if self.group.first and self._saved != self.iteration:
            self.files.save(
                self.model.state_dict(),
                self.iteration // len(self.sampler),
                epoch_ended=self.iteration % len(self.sampler) == 0,
                optimizer=self.optimiser.state_dict(),
                cur_iter=self.iteration,
                **({"grad_scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {}),
                classes=Classes.of(self.recipe).entry(),
                **({"rows": self._log.rows} if self._log else {}),
                **self._identity(),
            )
        self._saved = self.iteration

    def _identity(self) -> dict[str, str | int]:
        """Settings that must be equal in a resumed run: the order of samples and the schedule depend on them."""
        sampler = self.sampler
        return {"recipe": self.recipe.name, "seed": sampler.seed, "batch": sampler.batch, "crops": sampler.items}

    def resume(self) -> None:
        """Take the state from `LATEST` in the output folder, which may be in the middle of an epoch.

        Raises:
            CheckpointError: there is none, it is damaged, or it belongs to another recipe, classes, seed, batch or
                training set.
        """
        state = self.files.read(**self._identity())
        own = OwnState(self.recipe, self.model, self.optimiser, self.scaler, len(self.sampler))
        check_state(state, own, self.files.latest, self.files.advice(self.files.latest))
        try:
            self.model.load_state_dict(state["model"])
            optimiser.restore(self.optimiser, state["optimizer"])
            self.iteration = self._saved = state["cur_iter"]
            self._rows = state.get("rows", {})
            if self.scaler.is_enabled() and "grad_scaler" in state:
                self.scaler.load_state_dict(state["grad_scaler"])
        except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{self.files.latest} is no training state of {self.recipe.name}: {error}") from error


def _check(recipe: Recipe, sampler: EpochSampler) -> None:
    """Refuse a batch that cannot be trained on."""
    batch, ranks = sampler.batch, sampler.ranks
    if batch < 1 or batch % ranks:
        raise TrainingError(f"a batch of {batch} cannot be shared by {ranks} processes: --batch must be a multiple")
    if not len(sampler):
        raise TrainingError(f"{sampler.items} crops an epoch are fewer than one batch of {batch}: lower --batch")
    backbone = recipe.architecture.backbone
    if batch < backbone.smallest_batch:
        raise TrainingError(f"{backbone.name} needs at least {backbone.smallest_batch} crops in a batch: raise --batch")


@contextlib.contextmanager
def _step_errors(group: Group, batch: int) -> Iterator[None]:
    """Re-raise exhausted memory and lost processes with the reason and what to do."""
    try:
        with lost_process(group):
            yield
    except RuntimeError as error:  # torch.OutOfMemoryError on a GPU only
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"the memory of {group.device} is too small for {batch // group.size} crops on it: lower --batch, use more "
            f"GPUs, or --amp bf16 ({str(error).splitlines()[0]})"
        ) from error
