"""One set of pictures for several processes that `torchrun` started, or for this one alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from isnet_trt.engines.cores import usable_cores
from isnet_trt.errors import SettingsError

T = TypeVar("T")
_PATIENCE = 24 * 3600.0
"""Seconds that a process waits for the others: they may have much larger pictures. One that dies ends all at once."""


class Share(Protocol):
    """This process among those of the run."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def sum_array(self, values: NDArray[Any]) -> NDArray[Any]:
        """``values`` (int64 or float64) summed over all processes, in each of them."""

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank, in each of them."""


class Alone:
    """The only process."""

    rank = 0
    size = 1

    def sum_array(self, values: NDArray[Any]) -> NDArray[Any]:
        """``values`` as they are."""
        return values

    def gather(self, value: T) -> list[T]:
        """A list of one."""
        return [value]


@contextmanager
def shared() -> Iterator[Share]:
    """This process's place, from the environment that `torchrun` sets; `Alone` without it.

    Counts travel by gloo. A process sees one GPU, that of its place on the machine. CUDA must not be in use yet.

    Raises:
        SettingsError: there are several processes and torch is missing.
        TrainingError: the other processes cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Alone()
        return
    _choose_gpu()
    try:
        from isnet_trt.training.distributed import processes
    except ImportError as error:
        raise SettingsError(
            f"several processes need torch.distributed ({error}); pip install 'isnet_trt[train]', or start one process"
        ) from None
    with processes("cpu", timeout=_PATIENCE) as here:
        yield here


def _choose_gpu() -> None:
    """Leave this process the one GPU that its number on this machine means; more processes than GPUs share them."""
    local, visible = int(os.environ.get("LOCAL_RANK", 0)), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(local)
    elif visible.strip():
        gpus = visible.split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[local % len(gpus)]


def threads_each() -> int | None:
    """CPU threads for each process of a run of several on this machine; None (the engine's default) for one."""
    there = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, usable_cores() // there) if there > 1 else None
