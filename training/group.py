"""The processes that `torchrun` started, as one group.

Importing this needs no torch, nor does a single process on the CPU: bundles are evaluated where torch is not installed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import TrainingError, is_out_of_memory

T = TypeVar("T")
# gloo reports a lost process by a bare RuntimeError, nccl by DistError: the former is recognised by its text.
_LOST = ("gloo", "nccl", "connection", "timed out", "timeout", "peer", "socket", "broken pipe")


@dataclass(frozen=True)
class Group:
    """The processes of a run, seen from this one: ``rank`` of ``size``, on ``device`` (``cpu``, ``cuda:0``, …).

    Messages between processes are sent by gloo from CPU memory, so that they do not wait for a GPU's queue.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def cuda(self) -> bool:
        """Whether this process computes on a GPU."""
        return self.device != "cpu"

    @property
    def first(self) -> bool:
        """Whether this process writes the files and prints."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes; all get the same result."""
        return self.sum_array(np.asarray(values, np.float64)).tolist()

    def sum_array(self, values: NDArray[Any]) -> NDArray[Any]:
        """An array (float64 or int64) summed over all processes."""
        if self.size == 1:
            return values
        import torch

        # all_reduce writes its result into its argument.
        total = torch.from_numpy(values.copy())
        with lost_process(self):
            torch.distributed.all_reduce(total)
        return total.numpy()

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        if self.size == 1:
            return [value]
        import torch

        values: list[Any] = [None] * self.size
        with lost_process(self):
            torch.distributed.all_gather_object(values, value)
        return values


@contextlib.contextmanager
def process_group(device: str | None = None, timeout: float = 600) -> Iterator[Group]:
    """The processes that `torchrun` started, from the environment that it sets; without it this process alone.

    Args:
        device: ``cpu`` or ``cuda``; None: the GPU if there is one.
        timeout: seconds after which a process that waits for the others gives up.

    Raises:
        TrainingError: there is no GPU for this process, or the others could not be reached.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    group = Group(rank, size, _device(device))
    if size == 1:
        yield group
        return
    import torch

    backend = "cpu:gloo,cuda:nccl" if group.cuda else "gloo"
    with lost_process(group):
        torch.distributed.init_process_group(backend, timeout=timedelta(seconds=timeout))
    yield group
    # Not after an exception: this waits for processes that may be gone.
    torch.distributed.destroy_process_group()


def _device(name: str | None) -> str:
    if name == "cpu":
        return name
    import torch

    if name is None and not torch.cuda.is_available():
        return "cpu"
    if not torch.cuda.is_available():
        raise TrainingError("torch sees no NVIDIA GPU here (torch.cuda.is_available() is false); use --device cpu")
    local, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= count:
        raise TrainingError(f"process {local} of this machine has no GPU: there are {count}; lower --nproc-per-node")
    # Otherwise what names no device would be allocated on GPU 0 by every process of the machine.
    torch.cuda.set_device(local)
    return f"cuda:{local}"


@contextlib.contextmanager
def lost_process(group: Group) -> Iterator[None]:
    """Re-raise torch's error for a process that is gone or does not answer as a `TrainingError`."""
    if group.size == 1:
        yield
        return
    import torch

    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):  # this process's own: the caller explains it
            raise
        text = str(error)
        if not (isinstance(error, torch.distributed.DistError) or any(sign in text.lower() for sign in _LOST)):
            raise
        raise TrainingError(
            f"process {group.rank} of {group.size} lost the others: one has died or does not answer "
            f"({text.strip().splitlines()[0]}). Its own message is above; go on from the last checkpoint with --resume"
        ) from error
