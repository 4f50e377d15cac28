"""The drawn scenes as a dataset: each scene is drawn once, by whichever worker needs it first, and kept in memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from isnet_trt.settings import Size
from isnet_trt.training.data.augment import Augment
from isnet_trt.training.recipes import Recipe
from isnet_trt.training.scenes import draw_scene

TRAIN_SEED = 1_000_000
"""First scene of the training set; training scenes are TRAIN_SEED + 0, 1, 2, …"""
HELD_OUT_SEED = 9_000_000
"""First scene of the held-out set."""

Key = tuple[int, int]
"""(epoch, place in the epoch): decides all that is random about a sample."""


@dataclass(frozen=True)
class SceneSet:
    """How many training scenes, of what size, and how many crops of each make an epoch."""

    count: int = 400
    size: Size = (512, 1024)
    repeats: int = 5


class SceneCache:
    """Scenes ``first`` … ``first + count − 1`` in memory that worker processes share (they must be forked).

    Two workers may draw the same scene at the same time; they write the same bytes.
    """

    def __init__(self, first: int, count: int, size: Size) -> None:
        self.first, self.size = first, size
        pixels = count * size[0] * size[1]
        self._images = np.frombuffer(mmap.mmap(-1, pixels * 3), np.uint8).reshape(count, *size, 3)
        self._labels = np.frombuffer(mmap.mmap(-1, pixels), np.uint8).reshape(count, *size)
        self._drawn = np.frombuffer(mmap.mmap(-1, count), np.uint8)

    def __len__(self) -> int:
        return len(self._drawn)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Picture (B, G, R) and labels of one scene; not to be written to."""
        if not self._drawn[index]:
            scene = draw_scene(self.first + index, *self.size)
            self._images[index], self._labels[index] = scene.image[..., ::-1], scene.labels
            self._drawn[index] = 1
        return self._images[index], self._labels[index]


class SceneDataset(Dataset):
    """Augmented crops; indexed by `Key`, so that the order of the workers changes nothing."""

    def __init__(self, cache: SceneCache, augment: Augment, seed: int) -> None:
        self.cache, self.augment, self.seed = cache, augment, seed

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, index = key
        image, labels = self.cache[index % len(self.cache)]
        rng = np.random.default_rng([self.seed, epoch, index])
        x, target = self.augment(image, labels.astype(np.int16), rng)
        return torch.from_numpy(x), torch.from_numpy(target)


class EpochSampler(Sampler):
    """Shuffled batches of keys of one epoch, the last partial one dropped; can start in the middle of an epoch."""

    def __init__(self, items: int, batch: int, seed: int) -> None:
        self.items, self.batch, self.seed = items, batch, seed
        self.epoch, self.skip = 1, 0

    def __len__(self) -> int:
        return self.items // self.batch

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.items)
        for i in range(self.skip, len(self)):
            yield [(self.epoch, int(k)) for k in order[i * self.batch : (i + 1) * self.batch]]


def scene_loader(
    recipe: Recipe, scenes: SceneSet, batch: int, seed: int, workers: int
) -> tuple[DataLoader, EpochSampler]:
    """The loader of training batches and the sampler whose ``epoch`` and ``skip`` are set before each pass.

    A batch is float32 (B, 3, h, w) and int64 (B, h, w) of the recipe's crop size.
    """
    dataset = SceneDataset(SceneCache(TRAIN_SEED, scenes.count, scenes.size), Augment.of(recipe), seed)
    sampler = EpochSampler(scenes.count * scenes.repeats, batch, seed)
    loader: DataLoader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        worker_init_fn=_start_worker,
        # Not forked: the thread pools of torch, OpenCV and ONNX Runtime do not survive a fork, and a worker that
        # inherits one waits for it for ever.
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=4 if workers else None,
        persistent_workers=workers > 0,
    )
    return loader, sampler


def _start_worker(_: int) -> None:
    """One thread each; the processes are the parallelism. Ctrl-C is for the trainer alone."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def held_out(recipe: Recipe, count: int, size: Size) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Held-out scenes: RGB picture and labels."""
    for index in range(count):
        scene = draw_scene(HELD_OUT_SEED + index, *size)
        yield scene.image, scene.labels
