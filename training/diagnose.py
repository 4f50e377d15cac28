"""Find the first tensor of a training step that has NaN or infinite values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from isnet_trt.training.group import Group

Finding = tuple[int, str]
"""Position in the order of computation, and name."""
_NOWHERE: Finding = (2**62, "every tensor of a repeated forward pass is finite, so the loss itself overflowed")


def first_not_finite(model: nn.Module, x: Tensor, group: Group) -> str:
    """Name the first tensor with a value that is not finite: the input, a weight, or a module's output.

    Runs the forward pass once more; with several processes all of them have to call this.
    """
    first = min(_gathered(group, _before_forward(model, x)))
    if first == _NOWHERE:
        first = min(_gathered(group, _in_forward(model, x)))
    return first[1]


def _gathered(group: Group, finding: Finding) -> list[Finding]:
    """The findings of all processes."""
    suffix = f" (process {group.rank} of {group.size})" if group.size > 1 and finding != _NOWHERE else ""
    return group.gather((finding[0], finding[1] + suffix))


def _before_forward(model: nn.Module, x: Tensor) -> Finding:
    if not finite(x):
        bad = (~torch.isfinite(x)).flatten(1).any(1).nonzero()[:, 0].tolist()
        return 0, f"the input: crops {bad} of the batch"
    # Buffers are not checked: the failed pass has already updated the running statistics.
    bad_weight = next((name for name, weight in model.named_parameters() if not finite(weight)), None)
    return (1, f"the weight {bad_weight}") if bad_weight else _NOWHERE


def _in_forward(model: nn.Module, x: Tensor) -> Finding:
    outputs: list[tuple[str, bool]] = []  # of each module in order: name, all values finite
    hooks = [
        module.register_forward_hook(lambda _m, _x, y, name=name: outputs.append((name, all(map(finite, tensors(y))))))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            model.forward(x)
    finally:
        for hook in hooks:
            hook.remove()
    bad = ((order, f"the output of {name}") for order, (name, good) in enumerate(outputs, start=2) if not good)
    return next(bad, _NOWHERE)


def finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def tensors(output: Any) -> Iterator[Tensor]:
    """All tensors in a module's output."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for item in output:
            yield from tensors(item)
