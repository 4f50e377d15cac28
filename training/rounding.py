"""Rounding as eight-bit engines do it, with a gradient: what quantisation-aware training puts into the network.

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
_SMALLEST_SCALE = 1e-10


@dataclass(frozen=True)
class Rounding:
    """Round what the module called ``module`` gets ("input") or gives ("output"), with one symmetric scale."""

    module: str
    side: Literal["input", "output"]
    scale: float


@dataclass(frozen=True)
class Placement:
    """All roundings of a network: activations with fixed scales, and the convolutions whose weights are rounded."""

    type: Type
    activations: tuple[Rounding, ...]
    weights: tuple[str, ...]


def rounded(x: Tensor, scale: Tensor | float, kind: Type) -> Tensor:
    """``x`` rounded to scale · (a stored number), of the same shape and type; ``scale`` broadcasts."""
    units = x / scale
    lowest = -128.0 if kind == "int8" else -_LARGEST[kind]
    inside = units.clamp(lowest, _LARGEST[kind])
    with torch.no_grad():
        stored = inside.round() if kind == "int8" else inside.to(_FP8).to(x.dtype)
        rest = stored - inside
    return (inside + rest) * scale


class RoundedWeight(nn.Module):
    """A convolution's weight rounded with one scale per output channel, from its largest entry."""

    def __init__(self, kind: Type) -> None:
        super().__init__()
        self.kind: Type = kind

    def forward(self, weight: Tensor) -> Tensor:
        """(O, I, h, w) -> the same shape."""
        largest = weight.detach().abs().amax((1, 2, 3), keepdim=True)
        return rounded(weight, (largest / _LARGEST[self.kind]).clamp_min(_SMALLEST_SCALE), self.kind)


def place(network: nn.Module, placement: Placement) -> None:
    """Put the roundings into ``network``; its parameters stay float32 and trainable."""
    for one in placement.activations:
        module = network.get_submodule(one.module)
        if one.side == "input":
            module.register_forward_pre_hook(_before(one.scale, placement.type))
        else:
            module.register_forward_hook(_behind(one.scale, placement.type))
    for name in placement.weights:
        parametrize.register_parametrization(network.get_submodule(name), "weight", RoundedWeight(placement.type))


def remove_weights(network: nn.Module, names: Iterable[str]) -> None:
    """Give the convolutions their unrounded weights back."""
    for name in names:
        parametrize.remove_parametrizations(network.get_submodule(name), "weight", leave_parametrized=False)


def _before(scale: float, kind: Type) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return rounded(inputs[0], scale, kind), *inputs[1:]

    return hook


def _behind(scale: float, kind: Type) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return rounded(output, scale, kind)

    return hook


def _keep_attention(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _attention_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """By computing the attention again with PyTorch's own operator."""
    q, k, v, bias = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
    with torch.enable_grad():
        mask = bias.detach()[:, None, None, :].expand(-1, 1, q.shape[1], -1)
        out = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], mask, scale=ctx.scale)[:, 0]
    # The bias is a number of positions: nothing is learned from it.
    return *torch.autograd.grad(out, (q, k, v), gradient), None, None


def _keep_pool(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _pool_gradient(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    logits, features = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
    with torch.enable_grad():
        mask = class_mask(logits.argmax(dim=1), logits.shape[1])
        centres = class_weights(logits, mask) @ features
    own, other = torch.autograd.grad(centres, (logits, features), gradient)
    return own, other


torch.library.register_autograd("isnet_trt::attention", _attention_gradient, setup_context=_keep_attention)
torch.library.register_autograd("isnet_trt::region_pool", _pool_gradient, setup_context=_keep_pool)
