"""Dilated residual backbones at output stride 8: ResNet (He et al. 2016) and ResNeSt (Zhang et al. 2020).

Every stride-2 step maps n to ceil(n / 2), so the feature maps of a picture H×W are ceil(H/4) × ceil(W/4) after the
stem and stage 1, and ceil(H/8) × ceil(W/8) after stages 2 to 4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isnet_trt.recipes.architecture import Backbone, Block
from isnet_trt.training.model.layers import conv

EXPANSION = 4
STRIDES = (1, 2, 1, 1)
# The first block of a dilated stage uses half of the stage's dilation.
DILATIONS = ((1, 1), (1, 1), (1, 2), (2, 4))


class Stages(NamedTuple):
    """Outputs of the four stages, (B, C, h, w) at strides 4, 8, 8, 8."""

    stage1: Tensor
    stage2: Tensor
    stage3: Tensor
    stage4: Tensor


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions with a skip; the stride sits on the 3×3."""

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, first: bool) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.downsample = projection(inputs, outputs, stride) if first else None
        self.conv1 = conv(inputs, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride, dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 4 * width, ceil(h / stride), ceil(w / stride))."""
        skip = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + skip)


class SplitAttention(nn.Module):
    """A 3×3 convolution into two splits, mixed channel by channel with weights that depend on the whole picture.

    With s0, s1 the two splits and z0, z1 the halves of fc2(relu(bn1(fc1(mean(s0 + s1))))), the result is
    a·s0 + (1 - a)·s1 with a = sigmoid(z0 - z1), which is the softmax over two entries.
    """

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        # The authors' max(width · radix / reduction, 32), with radix 2 and reduction 4.
        hidden = max(width // 2, 32)
        self.conv = conv(width, 2 * width, 3, dilation=dilation, groups=2)
        self.bn0 = nn.BatchNorm2d(2 * width)
        self.fc1 = nn.Conv2d(width, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.fc2 = nn.Conv2d(hidden, 2 * width, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) -> (B, width, h, w)."""
        split0, split1 = self.relu(self.bn0(self.conv(x))).chunk(2, dim=1)
        pooled = (split0 + split1).mean((2, 3), keepdim=True)
        score0, score1 = self.fc2(self.relu(self.bn1(self.fc1(pooled)))).chunk(2, dim=1)
        weight = torch.sigmoid(score0 - score1)
        return weight * split0 + (1 - weight) * split1


class CeilPool(nn.Module):
    """2×2 mean with stride 2; an odd last row or column is averaged over the samples that exist.

    Repeating that row or column first gives the same means, and shapes that an exporter can prove for every size,
    which a pooling layer in ceil mode does not.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, ceil(h / 2), ceil(w / 2))."""
        return F.avg_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), kernel_size=2)


class SplitAttentionBlock(nn.Module):
    """The bottleneck of ResNeSt: split attention in place of the 3×3, striding done by average pools."""

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, first: bool) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.downsample = pooled_projection(inputs, outputs, stride) if first else None
        self.conv1 = conv(inputs, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = SplitAttention(width, dilation)
        self.pool = nn.AvgPool2d(3, stride, padding=1) if stride > 1 else nn.Identity()
        self.conv3 = conv(width, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 4 * width, ceil(h / stride), ceil(w / stride))."""
        skip = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.pool(self.conv2(x))
        return self.relu(self.bn3(self.conv3(x)) + skip)


BLOCKS: dict[Block, type[Bottleneck | SplitAttentionBlock]] = {
    "bottleneck": Bottleneck,
    "split_attention": SplitAttentionBlock,
}


def projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """The skip of a first block: strided 1×1 convolution and batch-norm."""
    return nn.Sequential(conv(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs))


def pooled_projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """The skip of a first ResNeSt block: average pool (a no-op for stride 1), 1×1 convolution, batch-norm."""
    return nn.Sequential(CeilPool() if stride > 1 else nn.Identity(), conv(inputs, outputs), nn.BatchNorm2d(outputs))


def stem(width: int) -> nn.Sequential:
    """Three 3×3 convolutions, the first with stride 2: 3 -> width -> width -> 2 * width channels."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, width, 2), (width, width, 1), (width, 2 * width, 1)):
        layers += [conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class ResidualBackbone(nn.Module):
    """Stem, max-pool and four stages, as `Backbone` says."""

    def __init__(self, spec: Backbone) -> None:
        super().__init__()
        self.stem = stem(spec.stem_width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = (2 * spec.stem_width, *spec.stage_channels)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(spec, index, inputs[index]) for index in range(len(spec.depths))
        )

    def forward(self, x: Tensor) -> Stages:
        """Normalised pictures (B, 3, H, W) -> the four stages' outputs."""
        stage1 = self.layer1(self.maxpool(self.stem(x)))
        stage2 = self.layer2(stage1)
        stage3 = self.layer3(stage2)
        return Stages(stage1, stage2, stage3, self.layer4(stage3))


def _stage(spec: Backbone, index: int, inputs: int) -> nn.Sequential:
    block = BLOCKS[spec.block]
    width = spec.width << index
    first, others = DILATIONS[index]
    blocks = [block(inputs, width, STRIDES[index], first, first=True)]
    blocks += [block(EXPANSION * width, width, 1, others, first=False) for _ in range(spec.depths[index] - 1)]
    return nn.Sequential(*blocks)
