"""Rounding to eight bits as engines do it, with a gradient, for quantisation-aware training.

The gradient of rounding is taken as 1 inside the range and 0 outside (straight-through estimator: Bengio et al. 2013;
for quantisation Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", CVPR 2018).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from isnet_trt.training.model.ops import class_mask, class_weights

Type = Literal["int8", "fp8"]
_FP8 = torch.float8_e4m3fn
_LARGEST: dict[Type, float] = {"int8": 127.0, "fp8": 448.0}
# As in export/quantise/formats.py, whose layer is above this one and cannot be imported here.
_SMALLEST_SCALE = 1e-10


@dataclass(frozen=True)
class Rounding:
    """Round the input or the output of the module called ``module``, with one symmetric scale."""

    module: str
    side: Literal["input", "output"]
    scale: float


@dataclass(frozen=True)
class Placement:
    """All roundings of a network: activations with fixed scales, and the convolutions whose weights are rounded."""

    type: Type
    activations: tuple[Rounding, ...]
    weights: tuple[str, ...]


def rounded(x: Tensor, scale: Tensor | float, type_: Type) -> Tensor:
    """``x`` rounded to scale · (a number of the type), of the same shape and dtype; ``scale`` broadcasts."""
    lowest = -128.0 if type_ == "int8" else -_LARGEST[type_]
    inside = (x / scale).clamp(lowest, _LARGEST[type_])
    # Straight-through: the value is rounded, the gradient is that of the clamp alone.
    with torch.no_grad():
        stored = inside.round() if type_ == "int8" else inside.to(_FP8).to(x.dtype)
        rest = stored - inside
    return (inside + rest) * scale


class RoundedWeight(nn.Module):
    """A convolution's weight rounded with one scale per output channel, from its largest entry."""

    def __init__(self, type_: Type) -> None:
        super().__init__()
        self.number_type: Type = type_

    def forward(self, weight: Tensor) -> Tensor:
        """(O, I, h, w) -> the same shape."""
        # The scale is a constant to the gradient, as it is one in the engine.
        largest = weight.detach().abs().amax((1, 2, 3), keepdim=True)
        return rounded(weight, (largest / _LARGEST[self.number_type]).clamp_min(_SMALLEST_SCALE), self.number_type)


def place(network: nn.Module, placement: Placement) -> None:
    """Put the roundings into ``network``; its parameters stay float32 and trainable."""
    for rounding in placement.activations:
        module = network.get_submodule(rounding.module)
        if rounding.side == "input":
            module.register_forward_pre_hook(_round_input(rounding.scale, placement.type))
        else:
            module.register_forward_hook(_round_output(rounding.scale, placement.type))
    for name in placement.weights:
        parametrize.register_parametrization(network.get_submodule(name), "weight", RoundedWeight(placement.type))


def remove_weights(network: nn.Module, names: Iterable[str]) -> None:
    """Take the rounding of weights out of the network; the convolutions get their unrounded weights back."""
    for name in names:
        parametrize.remove_parametrizations(network.get_submodule(name), "weight", leave_parametrized=False)


def _round_input(scale: float, type_: Type) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return rounded(inputs[0], scale, type_), *inputs[1:]

    return hook


def _round_output(scale: float, type_: Type) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return rounded(output, scale, type_)

    return hook


def _keep_attention(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _attention_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of q, k and v, by computing the attention again with PyTorch's own operator."""
    q, k, v, bias = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
    with torch.enable_grad():
        mask = bias.detach()[:, None, None, :].expand(-1, 1, q.shape[1], -1)
        out = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], mask, scale=ctx.scale)[:, 0]
    # No gradient for the bias: it holds the numbers of positions, from which nothing is learned.
    return *torch.autograd.grad(out, (q, k, v), gradient), None, None


def _keep_pool(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _pool_gradient(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    logits, features = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
    with torch.enable_grad():
        mask = class_mask(logits.argmax(dim=1), logits.shape[1])
        centres = class_weights(logits, mask) @ features
    of_logits, of_features = torch.autograd.grad(centres, (logits, features), gradient)
    return of_logits, of_features


# Here and not beside the operators: only quantisation-aware training differentiates the inference form.
torch.library.register_autograd("isnet_trt::attention", _attention_gradient, setup_context=_keep_attention)
torch.library.register_autograd("isnet_trt::region_pool", _pool_gradient, setup_context=_keep_pool)
