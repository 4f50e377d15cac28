"""The shape of an ISNet: which backbone, how wide, how many classes. No torch needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Block = Literal["bottleneck", "split_attention"]
Activation = Literal["relu", "leaky_relu"]


@dataclass(frozen=True)
class Backbone:
    """A dilated residual backbone at output stride 8 (paper of He et al. 2016; ResNeSt: Zhang et al. 2020).

    ``stem_width`` is the width of the first two of the three stem convolutions, the third is twice as wide.
    ``width`` is the inner width of the first stage; it doubles in each of the four stages, which put out four times
    their inner width.
    """

    name: str
    block: Block
    depths: tuple[int, int, int, int]
    stem_width: int
    width: int = 64

    @property
    def stage_channels(self) -> tuple[int, int, int, int]:
        """Output channels of the four stages; (256, 512, 1024, 2048) for the published models."""
        first = 4 * self.width
        return first, 2 * first, 4 * first, 8 * first

    @property
    def smallest_batch(self) -> int:
        """Crops that a training batch needs: split attention normalises pooled features, one value per crop."""
        return 2 if self.block == "split_attention" else 1


RESNET50 = Backbone("resnet50", "bottleneck", (3, 4, 6, 3), stem_width=32)
RESNET101 = Backbone("resnet101", "bottleneck", (3, 4, 23, 3), stem_width=32)
RESNEST101 = Backbone("resnest101", "split_attention", (3, 4, 23, 3), stem_width=64)
RESNET_DEMO = Backbone("resnet_demo", "bottleneck", (1, 2, 2, 1), stem_width=16, width=16)
BACKBONES = {backbone.name: backbone for backbone in (RESNET50, RESNET101, RESNEST101, RESNET_DEMO)}
"""Every backbone by name."""


@dataclass(frozen=True)
class Architecture:
    """The parameters that decide the names and shapes of a model's weights, and its activation.

    ``shortcut_channels`` is the width of the stride-4 shortcut from stage 1 to the decoder (LIP), or None.
    The activation belongs to the head; the backbone always uses ReLU.
    """

    backbone: Backbone
    num_classes: int
    activation: Activation = "relu"
    shortcut_channels: int | None = None
    head_channels: int = 512
    context_channels: int = 256

    @property
    def output_stride(self) -> int:
        """Input pixels per output position: 8, or 4 with the shortcut."""
        return 4 if self.shortcut_channels else 8
