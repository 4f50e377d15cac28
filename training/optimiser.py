"""SGD of a training run: on a GPU one fused kernel for all parameters, elsewhere torch's own choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import SGD

from isnet_trt.recipes import Optimiser

IMPLEMENTATION = ("foreach", "fused")
"""Options of torch's optimisers that choose a kernel and leave the numbers as they are, up to rounding."""


def sgd(model: nn.Module, rule: Optimiser, fused: bool) -> SGD:
    """SGD with momentum for all parameters in one group: weight decay on everything, batch-norm and biases included."""
    optimiser = SGD(
        model.parameters(), rule.lr, rule.momentum, weight_decay=rule.weight_decay, fused=True if fused else None
    )
    if fused:
        _own_buffers(optimiser)
    return optimiser


def restore(optimiser: SGD, state: Mapping[str, Any]) -> None:
    """Load the state of an earlier run, also of one whose steps were computed by other kernels."""
    own = {name: optimiser.param_groups[0][name] for name in IMPLEMENTATION}
    optimiser.load_state_dict(dict(state))
    for group in optimiser.param_groups:
        group.update(own)
    if own["fused"]:
        _own_buffers(optimiser)


def _own_buffers(optimiser: SGD) -> None:
    """Give every parameter a momentum buffer of its own strides, filled with what there is or with zeros.

    The fused kernel walks through parameter, gradient and buffer as flat memory. A missing buffer it would create
    without filling it, which stays so if the first step is left out because a scaled gradient overflowed. Zeros give
    the first step of a missing one.
    """
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            buffer = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            if (saved := optimiser.state[parameter].get("momentum_buffer")) is not None:
                buffer.copy_(saved)
            optimiser.state[parameter]["momentum_buffer"] = buffer
