"""The inference form of an ISNet: the same function with less work, from the same weights.

Against the training form in evaluation mode (equal up to rounding):

- batch-norm is folded into the convolutions, the auxiliary head and dropout are gone;
- the convolutions of concat(mean, x) are W_x·x plus one bias vector W_g·mean per picture;
- attention over positions that all carry the centre of their class is attention over the K centres with
  log(number of positions) added to each class's score;
- a classifier head on concat(resize(y), s) with a 1×1 convolution is resize(W_y·y) + W_s·s.
"""

from __future__ import annotations

import copy
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from isnet_trt.training.model.backbone import ResidualBackbone
from isnet_trt.training.model.context import CrossAttention, ImageLevelContext, SemanticLevelContext
from isnet_trt.training.model.isnet import ISNet
from isnet_trt.training.model.ops import attention, region_pool, rows

M = TypeVar("M", bound=nn.Module)


def inference_form(model: ISNet) -> InferenceISNet:
    """An evaluation-only copy of ``model`` in its cheaper form; ``model`` is left as it was.

    Pictures (B, 3, H, W) in, final raw logits (B, K, h, w) out, any batch and size, like ``model.eval()``.
    """
    return InferenceISNet(model).eval().requires_grad_(False)


class InferenceISNet(nn.Module):
    """The network that `inference_form` returns: normalised images (B, 3, H, W) -> raw logits (B, K, h, w)."""

    def __init__(self, model: ISNet) -> None:
        super().__init__()
        self.architecture = model.architecture
        self.backbone_net: ResidualBackbone = folded(model.backbone_net)
        self.bottleneck = folded(model.bottleneck)
        self.ilc_net = InferenceImageLevelContext(model.ilc_net)
        self.decoder_stage1 = folded(model.decoder_stage1)
        self.slc_net = InferenceSemanticLevelContext(model.slc_net)
        self.shortcut = folded(model.shortcut) if model.architecture.shortcut_channels else None
        stage2 = folded(model.decoder_stage2)
        self.decoder_stage2 = ShortcutDecoder(stage2, model) if self.shortcut else stage2

    def forward(self, x: Tensor) -> Tensor:
        """Normalised pictures (B, 3, H, W), RGB -> final raw logits."""
        stages = self.backbone_net(x)
        features = self.bottleneck(stages.stage4)
        context = self.slc_net(features, self.ilc_net(features), self.decoder_stage1(features))
        if self.shortcut is None:
            return self.decoder_stage2(context)
        return self.decoder_stage2(context, self.shortcut(stages.stage1))


class MeanConv(nn.Module):
    """act(W·concat(mean, x) + b) of a 1×1 convolution as act(W_x·x + (W_g·mean + b))."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        convolution, self.act = parts(layer)
        channels = convolution.in_channels // 2
        self.mean = linear(convolution.weight[:, :channels], convolution.bias)
        self.local = pointwise(convolution.weight[:, channels:])

    def forward(self, x: Tensor, mean: Tensor) -> Tensor:
        """(B, C, h, w) and (B, C) -> (B, D, h, w)."""
        return self.act(self.local(x) + self.mean(mean)[:, :, None, None])


class InferenceImageLevelContext(nn.Module):
    """`ImageLevelContext` without the concatenation of the mean."""

    def __init__(self, net: ImageLevelContext) -> None:
        super().__init__()
        correlate: CrossAttention = folded(net.correlate_net)
        self.key_project1, self.key_project2 = MeanConv(correlate.key_project[0]), correlate.key_project[1]
        self.query_project = correlate.query_project
        self.value_project = MeanConv(correlate.value_project)
        self.out_project = correlate.out_project
        self.bottleneck = folded(net.bottleneck)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        mean = x.mean((2, 3))
        query = self.query_project(x)
        q, v = rows(query), rows(self.value_project(x, mean))
        k = rows(self.key_project2(self.key_project1(x, mean)))
        # No bias: each position counts once.
        context = attention(q, k, v, torch.zeros_like(k[:, :, 0]), q.shape[2] ** -0.5)
        out = self.out_project(context.transpose(1, 2).reshape(query.shape))
        return self.bottleneck(torch.cat([x, out], dim=1))


class InferenceSemanticLevelContext(nn.Module):
    """`SemanticLevelContext` on K class centres instead of h·w copies of them."""

    def __init__(self, net: SemanticLevelContext) -> None:
        super().__init__()
        correlate: CrossAttention = folded(net.correlate_net)
        self.query_project = correlate.query_project
        self.key_project = correlate.key_project
        self.value_project = correlate.value_project
        self.out_project = correlate.out_project
        self.bottleneck = folded(net.bottleneck)

    def forward(self, x: Tensor, image_level: Tensor, logits: Tensor) -> Tensor:
        """Features (B, C, h, w), image-level result (B, C, h, w), first logits (B, K, h, w) -> (B, C, h, w)."""
        centres, log_counts = region_pool(logits.flatten(2), rows(x))
        query = self.query_project(x)
        # Convolutions of a picture one pixel wide: as matrix products TensorRT-RTX 1.7 merges them with others wrongly
        # and then cannot build an engine of static shape.
        columns = centres.transpose(1, 2)[:, :, :, None]
        q, k, v = rows(query), rows(self.key_project(columns)), rows(self.value_project(columns))
        context = attention(q, k, v, log_counts, q.shape[2] ** -0.5)
        out = self.out_project(context.transpose(1, 2).reshape(query.shape))
        return self.bottleneck(torch.cat([image_level, out], dim=1))


class ShortcutDecoder(nn.Module):
    """The final decoder with a shortcut, its first convolution done before the enlargement."""

    def __init__(self, layer: nn.Sequential, model: ISNet) -> None:
        super().__init__()
        # layer[3] is the dropout, which does nothing in evaluation.
        (convolution, self.act), self.classifier = parts(layer[:3]), layer[4]
        channels = model.architecture.head_channels
        self.context = pointwise(convolution.weight[:, :channels])
        self.detail = pointwise(convolution.weight[:, channels:], convolution.bias)

    def forward(self, context: Tensor, detail: Tensor) -> Tensor:
        """(B, C, h, w) at stride 8 and (B, S, h', w') at stride 4 -> (B, K, h', w')."""
        y = F.interpolate(self.context(context), size=detail.shape[2:], mode="bilinear", align_corners=False)
        return self.classifier(self.act(y + self.detail(detail)))


def parts(layer: nn.Module) -> tuple[nn.Conv2d, nn.Module]:
    """The convolution and the activation of a folded `conv_bn_act`."""
    convolution, _, act = cast(nn.Sequential, layer)
    return cast(nn.Conv2d, convolution), act


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """The linear map of a 1×1 convolution's weight (D, C, 1, 1) and bias (D,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach()[:, :, 0, 0].clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def pointwise(weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """A 1×1 convolution with the given weight (D, C, 1, 1) and bias (D,)."""
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def folded(module: M) -> M:
    """An evaluation-mode copy in which each batch-norm is part of the convolution in front of it."""
    module = copy.deepcopy(module).eval()
    for part in module.modules():
        _fold_children(part)
    return module


def _fold_children(module: nn.Module) -> None:
    previous: tuple[str, nn.Module] = ("", module)
    for name, child in list(module.named_children()):
        # Replaced, not removed: the layers behind keep their indices, and so their names.
        if isinstance(child, nn.Dropout2d):
            setattr(module, name, nn.Identity())
        if isinstance(child, _BatchNorm):
            if not isinstance(previous[1], nn.Conv2d):
                raise TypeError(f"batch-norm {name!r} of {type(module).__name__} does not follow a convolution")
            fold(previous[1], child)
            setattr(module, name, nn.Identity())
        previous = name, child


def fold(convolution: nn.Conv2d, norm: _BatchNorm) -> None:
    """Make ``convolution`` compute norm(convolution(x)) with the running statistics of ``norm``.

    With factor f = weight / sqrt(running_var + eps): W' = f·W, b' = f·(b - running_mean) + bias. Computed in
    float64 and rounded once.
    """
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    factor = norm.weight.double() * torch.rsqrt(variance.double() + norm.eps)
    bias = torch.zeros_like(factor) if convolution.bias is None else convolution.bias.double()
    shifted = factor * (bias - mean.double()) + norm.bias.double()
    scaled = convolution.weight.double() * factor[:, None, None, None]
    dtype = convolution.weight.dtype
    convolution.weight = nn.Parameter(scaled.to(dtype).detach())
    convolution.bias = nn.Parameter(shifted.to(dtype).detach())
