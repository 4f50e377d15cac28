"""Models with random weights for the tests of the export."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from isnet_trt.export.onnx_edit import copied
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


def altered(graph: onnx.ModelProto, changes: dict[str, Callable[[np.ndarray], np.ndarray]]) -> onnx.ModelProto:
    """A copy of the graph in which each initializer named in ``changes`` has the values computed from its own."""
    copy = copied(graph)
    stored = {tensor.name: tensor for tensor in copy.graph.initializer}
    for name, change in changes.items():
        values = change(numpy_helper.to_array(stored[name]).copy())
        stored[name].CopyFrom(numpy_helper.from_array(np.asarray(values, np.float32), name))
    return copy
