"""Training in several processes: batch-norm over the batches of all.

n processes, each with an n-th of a batch, compute what one process computes from the whole batch: batch statistics, the
mean loss over the labelled pixels, and the gradients.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from isnet_trt.training.group import Group


def synchronised(model: nn.Module, group: Group) -> nn.Module:
    """``model``, changed in place to batch-norm over the batches of all processes; the state dict's names stay."""
    if group.size == 1:
        return model
    if group.cuda:
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
        # all_reduce works in place, on contiguous memory.
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
        # In a second pass over the values: E[x²] - E[x]² cancels where the mean is large.
        centred = x - mean[:, None, None]
        variance = total(centred.square().sum((0, 2, 3))) / count
        # torch keeps the unbiased variance as running statistics and normalises with the biased one.
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
