"""ISNet: a dilated backbone, image-level context, semantic-level context and three classifiers."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isnet_trt.errors import SettingsError
from isnet_trt.recipes.architecture import Architecture
from isnet_trt.training.model.backbone import ResidualBackbone
from isnet_trt.training.model.context import ImageLevelContext, SemanticLevelContext
from isnet_trt.training.model.layers import DROPOUT, conv_bn_act, decoder


class Outputs(NamedTuple):
    """Raw logits (B, K, h, w) of a training step: final, first stage, auxiliary head.

    h, w are ceil(H/8), ceil(W/8); those of the final prediction ceil(H/4), ceil(W/4) with a shortcut.
    """

    stage2: Tensor
    stage1: Tensor
    auxiliary: Tensor


class ISNet(nn.Module):
    """The network of a recipe, with the parameter names of the published checkpoints.

    In training mode a call gives `Outputs`, in evaluation mode the final raw logits alone.

    Args:
        architecture: what to build.
        auxiliary: build the auxiliary head; without it the model can only be evaluated.
    """

    shortcut: nn.Sequential
    auxiliary_decoder: nn.Sequential | None

    def __init__(self, architecture: Architecture, auxiliary: bool = True) -> None:
        super().__init__()
        self.architecture = architecture
        act, classes = architecture.activation, architecture.num_classes
        width, channels = architecture.head_channels, architecture.backbone.stage_channels
        self.backbone_net = ResidualBackbone(architecture.backbone)
        self.bottleneck = conv_bn_act(channels[3], width, 3, act)
        self.ilc_net = ImageLevelContext(width, architecture.context_channels, act)
        self.slc_net = SemanticLevelContext(width, architecture.context_channels, act)
        self.decoder_stage1 = decoder(width, width, classes, 1, act)
        if architecture.shortcut_channels:
            self.shortcut = conv_bn_act(channels[0], architecture.shortcut_channels, 1, act, bias=True)
        self.decoder_stage2 = _final_decoder(architecture)
        self.auxiliary_decoder = decoder(channels[2], width, classes, 3, act) if auxiliary else None

    def forward(self, x: Tensor) -> Outputs | Tensor:
        """Normalised pictures (B, 3, H, W), RGB -> raw logits; see the class.

        Raises:
            SettingsError: called in training mode without an auxiliary head.
        """
        stages = self.backbone_net(x)
        features = self.bottleneck(stages.stage4)
        stage1 = self.decoder_stage1(features)
        context = self.slc_net(features, self.ilc_net(features), stage1)
        stage2 = self.decoder_stage2(self._with_shortcut(context, stages.stage1))
        if not self.training:
            return stage2
        if self.auxiliary_decoder is None:
            raise SettingsError("this ISNet has no auxiliary head; build it with auxiliary=True to train it")
        return Outputs(stage2, stage1, self.auxiliary_decoder(stages.stage3))

    def _with_shortcut(self, context: Tensor, stage1: Tensor) -> Tensor:
        if not self.architecture.shortcut_channels:
            return context
        detail = self.shortcut(stage1)
        context = F.interpolate(context, size=detail.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat([context, detail], dim=1)


def _final_decoder(spec: Architecture) -> nn.Sequential:
    width, classes = spec.head_channels, spec.num_classes
    if spec.shortcut_channels:
        return decoder(width + spec.shortcut_channels, width, classes, 1, spec.activation)
    return nn.Sequential(nn.Dropout2d(DROPOUT), nn.Conv2d(width, classes, 1))
