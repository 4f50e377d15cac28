"""Several processes as one run: `torchrun` starts them, torch's DistributedDataParallel averages gradients.

n processes, each with an n-th of a batch, compute what one process computes from the whole batch: batch statistics, the
mean loss over the labelled pixels, and the gradients.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from isnet_trt.errors import TrainingError

T = TypeVar("T")
CPU = torch.device("cpu")
# gloo reports a lost process by a bare RuntimeError, nccl by DistError: the former is recognised by its text.
_LOST = ("gloo", "nccl", "connection", "timed out", "timeout", "peer", "socket", "broken pipe")


@dataclass(frozen=True)
class Group:
    """The processes of a run, seen from this one: ``rank`` of ``size``, computing on ``device``.

    Messages between processes are sent by gloo from CPU memory, so that they do not wait for a GPU's queue.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

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
        total = torch.from_numpy(values.copy())
        with lost_process(self):
            dist.all_reduce(total)
        return total.numpy()

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with lost_process(self):
            dist.all_gather_object(values, value, group=None)
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
    backend = "cpu:gloo,cuda:nccl" if group.device.type == "cuda" else "gloo"
    with lost_process(group):
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    yield group
    # Not after an exception: this waits for processes that may be gone.
    dist.destroy_process_group()


def _device(name: str | None) -> torch.device:
    if name == "cpu" or (name is None and not torch.cuda.is_available()):
        return CPU
    if not torch.cuda.is_available():
        raise TrainingError("torch sees no NVIDIA GPU here (torch.cuda.is_available() is false); use --device cpu")
    local, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= count:
        raise TrainingError(f"process {local} of this machine has no GPU: there are {count}; lower --nproc-per-node")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


@contextlib.contextmanager
def lost_process(group: Group) -> Iterator[None]:
    """Re-raise torch's error for a process that is gone or does not answer as a `TrainingError`."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        text = str(error)
        lost = isinstance(error, dist.DistError) or any(sign in text.lower() for sign in _LOST)
        if group.size == 1 or not lost:
            raise
        raise TrainingError(
            f"process {group.rank} of {group.size} lost the others: one has died or does not answer "
            f"({text.strip().splitlines()[0]}). Its own message is above; go on from the last checkpoint with --resume"
        ) from error


def synchronised(model: nn.Module, group: Group) -> nn.Module:
    """``model``, changed in place to batch-norm over the batches of all processes; the state dict's names stay."""
    if group.size == 1:
        return model
    if group.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, HostSyncBatchNorm.of(child))
    return model


class _Total(torch.autograd.Function):
    """Sum over all processes; gradients are summed too, as each process's result depends on every input."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        result = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Total.forward(ctx, gradients[0])


def total(value: Tensor) -> Tensor:
    """``value`` summed over all processes, with gradients."""
    return _Total.apply(value)


class HostSyncBatchNorm(nn.BatchNorm2d):
    """Batch-norm over the batches of all processes on the CPU, where torch's SyncBatchNorm does not work.

    Exact rather than fast: mean and variance are sums over all processes, and gradients pass through both sums.
    """

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> HostSyncBatchNorm:
        """The same layer, with the same parameters and buffers."""
        with torch.device("meta"):
            layer = cls(norm.num_features, norm.eps, norm.momentum)
        layer._parameters, layer._buffers, layer.training = norm._parameters, norm._buffers, norm.training
        return layer

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape and type."""
        if not self.training:
            return super().forward(input)
        x = input if input.dtype == torch.float64 else input.float()
        count = total(x.new_tensor(x.numel() // x.shape[1]))
        mean = total(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = total(centred.square().sum((0, 2, 3))) / count
        self._update_running(mean.detach(), variance.detach() * (count / (count - 1)))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        momentum = self.momentum or 0.0
        for buffer, value in ((self.running_mean, mean), (self.running_var, variance)):
            assert buffer is not None
            buffer.lerp_(value, momentum)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
