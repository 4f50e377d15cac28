"""Fine-tuning with the roundings of an eight-bit engine inside the network."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from isnet_trt.datasets.picture_set import Source
from isnet_trt.errors import TrainingError
from isnet_trt.recipes import Optimiser, Recipe
from isnet_trt.training.data.augment import Augment
from isnet_trt.training.data.crops import CropDataset, EpochSampler, batches, crop_loader
from isnet_trt.training.losses import WEIGHTS, pixel_loss
from isnet_trt.training.model import InferenceISNet, ISNet
from isnet_trt.training.options import Tuning
from isnet_trt.training.rounding import Placement, place, remove_weights
from isnet_trt.training.unfold import unfold


def fine_tune(
    model: ISNet, recipe: Recipe, source: Source, placement: Placement, tuning: Tuning, progress: bool = True
) -> dict[str, Tensor]:
    """Train the inference form of ``model`` with the roundings of ``placement``; return the weights as a state dict.

    ``model`` is not changed. The loss is that of the final and the first-stage prediction, as in training.

    Raises:
        TrainingError: the loss became NaN or infinite, or an epoch has less than one batch.
    """
    torch.manual_seed(tuning.seed)
    network = InferenceISNet(model).requires_grad_(True).train()
    place(network, placement)
    first_stage = _LastOutput(network.decoder_stage1)
    rule = Optimiser(tuning.lr, tuning.lr / 100, 0.0)
    optimiser = torch.optim.SGD(network.parameters(), rule.lr, momentum=rule.momentum)
    loader, sampler = _loader(recipe, source, tuning)
    total = min(len(sampler) * tuning.epochs, tuning.stop_after or sys.maxsize)
    with tqdm(total=total, unit="it", disable=None if progress else True) as bar:
        for number, (x, labels) in enumerate(itertools.islice(_batches(loader, sampler, tuning.epochs), total)):
            for group in optimiser.param_groups:
                group["lr"] = rule.rate(number, total)
            loss = WEIGHTS[0] * pixel_loss(network(x), labels) + WEIGHTS[1] * pixel_loss(first_stage.value, labels)
            _check(loss, number)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            bar.update()
    remove_weights(network, placement.weights)
    return unfold(network, model)


class _LastOutput:
    """The last output of a module, by a forward hook."""

    value: Tensor

    def __init__(self, module: nn.Module) -> None:
        module.register_forward_hook(self._store)

    def _store(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.value = output


def _loader(recipe: Recipe, source: Source, tuning: Tuning) -> tuple[Any, EpochSampler]:
    dataset = CropDataset(source, Augment.of(recipe), tuning.seed, tuning.repeats)
    sampler = EpochSampler(len(dataset), tuning.batch, tuning.seed)
    if not len(sampler):
        raise TrainingError(f"{len(dataset)} crops an epoch are fewer than one batch of {tuning.batch}")
    return crop_loader(dataset, sampler, tuning.workers), sampler


def _batches(loader: Any, sampler: EpochSampler, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    for epoch in range(epochs):
        sampler.epoch = epoch + 1
        yield from batches(loader)


def _check(loss: Tensor, number: int) -> None:
    if not torch.isfinite(loss):
        raise TrainingError(
            f"the loss is {loss.item()} at iteration {number + 1}: fine-tuning stopped, nothing was written. "
            "Lower --lr, or look for unusable labels"
        )
