"""Several processes as one run, on torch's own means: `torchrun` starts them, DistributedDataParallel averages.

What a single process computes from a batch, n processes compute from n-ths of it: batch statistics, the loss's mean
over the labelled pixels and the gradients are those of the whole batch.
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
_SIGNS_OF_DEATH = ("gloo", "nccl", "connection", "timed out", "timeout", "peer", "socket", "broken pipe")


@dataclass(frozen=True)
class Processes:
    """This process among those of the run: ``rank`` of ``size``, computing on ``device``.

    Messages between processes travel by gloo from CPU memory, so that they do not wait for a GPU's queue.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether this process writes the files and talks to the user."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes, which all get the same result."""
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
        found: list[Any] = [None] * self.size
        with lost_process(self):
            dist.all_gather_object(found, value, group=None)
        return found


@contextlib.contextmanager
def processes(device: str | None = None, timeout: float = 600) -> Iterator[Processes]:
    """This process's place, from the environment that `torchrun` sets; alone without it.

    Args:
        device: ``cpu`` or ``cuda``; None: the GPU if there is one.
        timeout: seconds after which a process that waits for the others gives up.

    Raises:
        TrainingError: there is no GPU for this process, or the others could not be reached.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    here = Processes(rank, size, _device(device))
    if size == 1:
        yield here
        return
    backend = "cpu:gloo,cuda:nccl" if here.device.type == "cuda" else "gloo"
    with lost_process(here):
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    yield here
    # Not after an exception: tearing down waits for processes that may be gone.
    dist.destroy_process_group()


def _device(wanted: str | None) -> torch.device:
    if wanted == "cpu" or (wanted is None and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise TrainingError("torch sees no NVIDIA GPU here (torch.cuda.is_available() is false); use --device cpu")
    local, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= there:
        raise TrainingError(f"process {local} of this machine has no GPU: there are {there}; lower --nproc-per-node")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


@contextlib.contextmanager
def lost_process(here: Processes) -> Iterator[None]:
    """Turn what torch raises when another process is gone, or does not answer, into a `TrainingError`."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        text = str(error)
        known = isinstance(error, dist.DistError) or any(sign in text.lower() for sign in _SIGNS_OF_DEATH)
        if here.size == 1 or not known:
            raise
        raise TrainingError(
            f"process {here.rank} of {here.size} lost the others: one has died or does not answer "
            f"({text.strip().splitlines()[0]}). Its own message is above; go on from the last checkpoint with --resume"
        ) from error


def synchronised(model: nn.Module, here: Processes) -> nn.Module:
    """The model with batch-norm over the batches of all processes; the state dict's names stay. In place."""
    if here.size == 1:
        return model
    if here.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, HostSyncBatchNorm.of(child))
    return model


class _Total(torch.autograd.Function):
    """Sum over all processes. Each process's result depends on every process's input, so gradients are summed too."""

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
    """Batch-norm over the batches of all processes, on the CPU, where torch's SyncBatchNorm refuses to work.

    Exact rather than quick: mean and variance are sums over all processes, and gradients pass through both sums.
    """

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> HostSyncBatchNorm:
        """The same layer, with the same parameters and buffers."""
        with torch.device("meta"):
            made = cls(norm.num_features, norm.eps, norm.momentum)
        made._parameters, made._buffers, made.training = norm._parameters, norm._buffers, norm.training
        return made

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape and type."""
        if not self.training:
            return super().forward(input)
        x = input if input.dtype == torch.float64 else input.float()
        count = total(x.new_tensor(x.numel() // x.shape[1]))
        mean = total(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = total(centred.square().sum((0, 2, 3))) / count
        self._remember(mean.detach(), variance.detach() * (count / (count - 1)))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        momentum = self.momentum or 0.0
        for buffer, value in ((self.running_mean, mean), (self.running_var, variance)):
            assert buffer is not None
            buffer.lerp_(value, momentum)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
