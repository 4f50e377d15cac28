"""Models with random weights for the tests of the export."""

from __future__ import annotations

import torch
from torch import nn

from isnet_trt.recipes import recipe
from isnet_trt.training.model import ISNet


def random_model(name: str = "isnet_demo", seed: int = 5) -> ISNet:
    """An ISNet in evaluation mode with random weights and running statistics."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = ISNet(recipe(name).architecture).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.weight, 0.5, 1.5), (module.running_var, 0.5, 1.5)):
                assert tensor is not None
                tensor.data.uniform_(low, high, generator=generator)
            assert module.running_mean is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
    return model
