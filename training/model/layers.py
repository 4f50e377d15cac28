"""The few layers that everything else is made of."""

from __future__ import annotations

from torch import nn

from isnet_trt.recipes.architecture import Activation

DROPOUT = 0.1
"""Channel dropout in front of each classifier."""


def activation(name: Activation) -> nn.Module:
    """ReLU, or leaky ReLU with slope 0.01."""
    return nn.ReLU(inplace=True) if name == "relu" else nn.LeakyReLU(0.01, inplace=True)


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    """Convolution without bias, padded so that stride 1 keeps the size and stride 2 gives ceil(size / 2)."""
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)


def conv_bn_act(inputs: int, outputs: int, kernel: int, act: Activation, bias: bool = False) -> nn.Sequential:
    """Convolution, batch-norm, activation, under the indices 0, 1, 2."""
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), activation(act))


def decoder(inputs: int, width: int, classes: int, kernel: int, act: Activation) -> nn.Sequential:
    """Convolution, batch-norm, activation, dropout, classifier, under the indices 0 to 4."""
    return nn.Sequential(*conv_bn_act(inputs, width, kernel, act), nn.Dropout2d(DROPOUT), nn.Conv2d(width, classes, 1))
