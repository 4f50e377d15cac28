"""A module of PyTorch as the network that engines are compared with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from isnet_trt.export.reference import Blocks
from isnet_trt.training.torch_engine import TorchEngine


class TorchReference(TorchEngine):
    """A module in evaluation mode on the CPU.

    For an ISNet it is the training form, which shares neither the folding of batch-norm nor the collapsed context with
    the exported graph.
    """

    def __init__(self, model: nn.Module, stride: int) -> None:
        super().__init__(model, "cpu")
        self.stride = stride
        self.module = model

    def run_with_blocks(self, pixels: NDArray[np.float32], names: Iterable[str]) -> tuple[NDArray[np.float32], Blocks]:
        """The model's output for ``pixels`` and those of its modules ``names``."""
        outputs: Blocks = {}
        handles = []
        for name in names:
            # ``name`` as a default: a closure would see the last name of the loop.
            def keep(module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
                # Copied: activations work in place, so that a later module may overwrite the tensor.
                outputs[name] = output.detach().numpy().copy()

            handles.append(self.module.get_submodule(name).register_forward_hook(keep))
        try:
            return self.run(pixels), outputs
        finally:
            for handle in handles:
                handle.remove()
