"""Crops in batches: workers, processes and order change nothing about a sample."""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import miniature
import pytest
import torch
from children import PATIENCE
from tiny_training import SCENES, TINY, TINY_RECIPES, data

from isnet_trt.datasets.layouts import open_dataset
from isnet_trt.errors import DataError, TrainingError
from isnet_trt.recipes import recipe
from isnet_trt.training.data.augment import Augment
from isnet_trt.training.data.crops import CropDataset, EpochSampler, batches, crop_loader
from isnet_trt.training.data.scenes import SceneSet, training_scenes

Batch = tuple[torch.Tensor, torch.Tensor]


def crops(repeats: int = 2, seed: int = 3) -> CropDataset:
    return CropDataset(data().train, Augment.of(TINY), seed, repeats)


def same(first: list[Batch], second: list[Batch]) -> bool:
    pairs = list(zip(first, second, strict=True))
    return all(torch.equal(x, x2) and torch.equal(y, y2) for (x, y), (x2, y2) in pairs)


def test_workers_change_nothing() -> None:
    passes: list[list[Batch]] = []
    for workers in (0, 2):
        # Not the kept scenes: the workers are to draw and share their own.
        dataset = CropDataset(training_scenes(SCENES), Augment.of(TINY), 3, 2)
        sampler = EpochSampler(len(dataset), 2, 3)
        loader = crop_loader(dataset, sampler, workers, timeout=PATIENCE)
        for sampler.epoch in (1, 2):
            passes.append([(x.clone(), y.clone()) for x, y in loader])
        assert workers == 0 or bool(dataset.source._drawn.all())  # drawn by workers, seen here
        del loader
    assert same(passes[0], passes[2])
    assert same(passes[1], passes[3])
    assert not same(passes[0], passes[1])
    assert passes[0][0][0].shape == (2, 3, 40, 56)
    assert passes[0][0][1].dtype == torch.int64


def test_processes_share_each_batch() -> None:
    dataset = crops(repeats=5)
    alone = list(crop_loader(dataset, EpochSampler(20, 6, seed=4), 0))
    shares = [list(crop_loader(dataset, EpochSampler(20, 6, 4, rank, 3), 0)) for rank in range(3)]
    together = [
        (torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])) for parts in zip(*shares, strict=True)
    ]
    assert len(alone) == 3
    assert same(alone, together)


def test_a_sample_hangs_on_seed_epoch_and_place_alone() -> None:
    first = crops()[(1, 5)]
    assert same([first], [crops()[(1, 5)]])
    for other in (crops()[(2, 5)], crops()[(1, 1)], crops(seed=4)[(1, 5)]):
        assert not same([first], [other])


def test_each_epoch_has_its_own_order_and_drops_the_last_partial_batch() -> None:
    sampler = EpochSampler(items=11, batch=3, seed=1)
    orders = []
    for sampler.epoch in (1, 2):
        drawn = list(sampler)
        assert [len(batch) for batch in drawn] == [3, 3, 3]
        orders.append([index for batch in drawn for _, index in batch])
        assert len(set(orders[-1])) == 9
    assert orders[0] != orders[1]
    sampler.skip = 2
    assert [index for batch in sampler for _, index in batch] == orders[1][6:]


def test_the_demo_recipe_draws_the_samples_of_the_recorded_run() -> None:
    """The first sample of ``--recipe isnet_demo --seed 0``, at a small size: seeds keep their meaning."""
    scenes = SceneSet(count=2, size=(64, 128))
    dataset = CropDataset(training_scenes(scenes), Augment.of(recipe("isnet_demo")), seed=0, repeats=5)
    x, y = dataset[(1, 7)]
    assert x.shape == (3, 192, 320)
    digest = hashlib.sha256(y.to(torch.int16).numpy().tobytes()).hexdigest()[:16]
    assert digest == "5bded96a1daf7b65"


def test_an_unreadable_picture_in_a_worker_is_named(tmp_path: Path) -> None:
    miniature.make_ade20k(tmp_path, train=2)
    source = open_dataset("ade20k", tmp_path, "train")
    source.files[1][0].write_bytes(b"no picture")
    dataset = CropDataset(source, Augment.of(TINY_RECIPES["tiny_ade20k"]), 0)
    loader = crop_loader(dataset, EpochSampler(2, 2, 0), workers=1, timeout=PATIENCE)
    with pytest.raises(DataError, match=f"^{source.files[1][0]}: not a picture") as raised:
        list(batches(loader))
    assert "Traceback" not in str(raised.value)


class Faulty:
    """A set that runs ``fault`` instead of reading a picture."""

    def __init__(self, fault: Callable[[], object]) -> None:
        self.fault = fault

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return self.fault()

    def batches(self, workers: int, timeout: float = PATIENCE) -> list[Any]:
        dataset = CropDataset(self, Augment.of(TINY), 0)
        return list(batches(crop_loader(dataset, EpochSampler(2, 2, 0), workers, timeout)))


def fail() -> None:
    raise RuntimeError("a fault in the set")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_of_the_set_is_not_reported_as_failed_workers(workers: int) -> None:
    with pytest.raises(RuntimeError, match="a fault in the set"):
        Faulty(fail).batches(workers)


@pytest.mark.parametrize(
    ("fault", "timeout", "reason"),
    [
        (functools.partial(os._exit, 1), PATIENCE, "DataLoader worker .*exited unexpectedly"),
        (functools.partial(time.sleep, PATIENCE), 1, "DataLoader timed out after 1 seconds"),
    ],
    ids=["dies", "hangs"],
)
def test_failed_workers_are_reported_with_what_to_do(fault: Callable[[], object], timeout: float, reason: str) -> None:
    with pytest.raises(TrainingError, match=rf"{reason}.*lower --workers"):
        Faulty(fault).batches(1, timeout)


def test_a_worker_outlives_the_signal_that_the_trainer_answers() -> None:
    before = set(multiprocessing.active_children())
    loader = crop_loader(crops(), EpochSampler(8, 2, 0), workers=1, timeout=PATIENCE)
    remaining = iter(loader)
    next(remaining)
    (worker,) = set(multiprocessing.active_children()) - before
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
    assert len(list(remaining)) == 3
    assert worker.is_alive()
