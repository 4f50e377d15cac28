"""One set of pictures shared by the processes that `torchrun` started, or all of it for this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from isnet_trt.engines.cores import usable_cores
from isnet_trt.errors import SettingsError

T = TypeVar("T")
_TIMEOUT = 24 * 3600.0
"""Seconds that a process waits for the others, whose pictures may be much larger. One that dies ends all at once."""


class Group(Protocol):
    """The processes of a run, seen from this one; `isnet_trt.training.distributed.Group` where there are several."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def sum_array(self, values: NDArray[Any]) -> NDArray[Any]:
        """``values`` (int64 or float64) summed over all processes, in each of them."""

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank, in each of them."""


class Alone:
    """A group of this process only; needs no torch."""

    rank = 0
    size = 1

    def sum_array(self, values: NDArray[Any]) -> NDArray[Any]:
        """``values`` unchanged."""
        return values

    def gather(self, value: T) -> list[T]:
        """A list of one."""
        return [value]


@contextmanager
def shared() -> Iterator[Group]:
    """The processes that `torchrun` started, from the environment that it sets; `Alone` without it.

    Counts are sent by gloo. A process sees one GPU, chosen by its number on the machine. CUDA must not be in use yet.

    Raises:
        SettingsError: there are several processes and torch is missing.
        TrainingError: the other processes cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Alone()
        return
    _choose_gpu()
    try:
        from isnet_trt.training.distributed import process_group
    except ImportError as error:
        raise SettingsError(
            f"several processes need torch.distributed ({error}); pip install 'isnet_trt[train]', or start one process"
        ) from None
    with process_group("cpu", timeout=_TIMEOUT) as group:
        yield group


def _choose_gpu() -> None:
    """Make one GPU visible, chosen by this process's number on the machine; processes share GPUs if there are fewer."""
    local, visible = int(os.environ.get("LOCAL_RANK", 0)), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(local)
    elif visible.strip():
        gpus = visible.split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[local % len(gpus)]


def threads_each() -> int | None:
    """CPU threads for each process of a run of several on this machine; None (the engine's default) for one."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, usable_cores() // processes) if processes > 1 else None
