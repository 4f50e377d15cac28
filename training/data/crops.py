"""Augmented crops in batches from any labelled set: the same samples for any number of workers and processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from isnet_trt.datasets.picture_set import Source
from isnet_trt.errors import IsnetError, TrainingError
from isnet_trt.opencv import cv2
from isnet_trt.training.data.augment import Augment

Key = tuple[int, int]
"""(epoch from 1, index within the epoch): with the seed it decides everything random about a sample."""
Batch = tuple[torch.Tensor, torch.Tensor]
"""float32 (B, 3, h, w) and int64 (B, h, w)."""
_GRACE = 30
"""Seconds that a worker lives on after SIGTERM; batch systems commonly wait as long before they kill."""


class CropDataset(Dataset):
    """Crops of a set whose every picture occurs ``repeats`` times an epoch; indexed by `Key`."""

    def __init__(self, source: Source, augment: Augment, seed: int, repeats: int = 1) -> None:
        self.source, self.augment, self.seed, self.repeats = source, augment, seed, repeats

    def __len__(self) -> int:
        """Crops an epoch."""
        return len(self.source) * self.repeats

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 (3, h, w) RGB, normalised, and int64 (h, w), of the crop size.

        Raises:
            DataError: a file of the set cannot be read.
        """
        epoch, index = key
        image, labels = self.source[index % len(self.source)]
        # From the key alone: the worker, and what it drew before, have no part in it.
        rng = np.random.default_rng([self.seed, epoch, index])
        x, target = self.augment(image, labels.astype(np.int16), rng)
        return torch.from_numpy(x), torch.from_numpy(target)


class EpochSampler(Sampler):
    """Shuffled batches of `Key` of one epoch, the last partial one dropped; can start in the middle of an epoch.

    ``batch`` counts the crops of all ``ranks`` processes together; process ``rank`` gets its share of each batch, so
    that batch i holds the same crops however many processes there are.
    """

    def __init__(self, items: int, batch: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        self.items, self.batch, self.seed, self.rank, self.ranks = items, batch, seed, rank, ranks
        self.epoch, self.skip = 1, 0

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return self.items // self.batch

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.items)
        share = self.batch // self.ranks
        for i in range(self.skip, len(self)):
            first = i * self.batch + self.rank * share
            yield [(self.epoch, int(k)) for k in order[first : first + share]]


def crop_loader(
    dataset: CropDataset, sampler: EpochSampler, workers: int, timeout: float = 0, pinned: bool = False
) -> DataLoader:
    """Batches float32 (B, 3, h, w) and int64 (B, h, w); set the sampler's ``epoch`` and ``skip`` before each pass.

    ``timeout``: seconds that one batch may take with workers, 0 without limit. ``pinned``: in page-locked memory,
    from which a GPU copies faster.
    """
    return DataLoader(
        _ErrorsAsSamples(dataset),
        batch_sampler=sampler,
        collate_fn=_collated,
        num_workers=workers,
        worker_init_fn=_start_worker,
        # Not forked: the thread pools of torch, OpenCV and ONNX Runtime do not survive a fork, and a worker that
        # inherits one waits for it for ever.
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=4 if workers else None,
        # A spawned worker imports everything anew: not at every epoch.
        persistent_workers=workers > 0,
        timeout=timeout if workers else 0,
        pin_memory=pinned,
    )


class _ErrorsAsSamples(Dataset):
    """Crops, or the error of this library that reading one raised: it leaves the worker whole, as an object."""

    def __init__(self, dataset: CropDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, torch.Tensor] | IsnetError:
        try:
            return self.dataset[key]
        # torch would create an exception that leaves a worker anew, from its text alone.
        except IsnetError as error:
            return error


def _collated(samples: list[tuple[torch.Tensor, torch.Tensor] | IsnetError]) -> Batch | IsnetError:
    """The batch, or the first error among its samples."""
    return next((s for s in samples if isinstance(s, IsnetError)), None) or default_collate(samples)


def batches(loader: DataLoader) -> Iterator[Batch]:
    """One pass over a `crop_loader`.

    Raises:
        DataError: the set raised it for a file that cannot be read.
        TrainingError: a worker was killed, or no batch came in time.
    """
    try:
        for batch in loader:
            if isinstance(batch, IsnetError):
                raise batch
            yield batch
    except RuntimeError as error:
        # The loader has no exception type of its own; its messages begin so. One that a worker raised begins with
        # "Caught RuntimeError in DataLoader worker process".
        if not str(error).startswith("DataLoader "):
            raise
        raise TrainingError(
            f"the workers that read pictures failed ({str(error).splitlines()[0]}): lower --workers, raise --timeout, "
            "or give a container more shared memory (docker run --shm-size=8g)"
        ) from error


def _start_worker(_: int) -> None:
    """Set up a worker: one thread, since the processes are the parallelism, and signals left to the trainer.

    Ctrl-C or a batch system's SIGTERM reaches all processes. The trainer answers it by finishing its iteration, for
    which it needs its workers; SIGTERM ends a worker only after `_GRACE`, so that none is left over.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
