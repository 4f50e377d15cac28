"""Networks for the runtime's tests, each in a host form and in a form on device memory that computes the same.

`Strided` is three products per value: host and GPU agree to rounding, so that everything around the network can be
compared at full size in seconds. `Torch` is the real network under PyTorch on the GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from isnet_trt.engines.base import Engine
from isnet_trt.merging.geometry import coarse_size
from tests.kernels.variants import device_view

Shape = tuple[int, int, int, int]


class DeviceForm:
    """A network as `isnet_trt.cuda.protocols.DeviceEngine`."""

    output_type = "fp32"

    def __init__(self, network: Network) -> None:
        self._network = network
        self._views: dict[tuple[int, tuple[int, ...]], torch.Tensor] = {}

    def no_graph(self, shapes: frozenset[Shape], stream: int) -> str:
        return self._network.no_graph

    def output_shape(self, shape: Shape) -> tuple[int, ...]:
        return self._network.output_shape(shape)

    def enqueue(self, input_address: int, output_address: int, shape: Shape, stream: int) -> None:
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            source, target = self._view(input_address, shape), self._view(output_address, self.output_shape(shape))
            self._network.compute(source, target)

    def _view(self, address: int, shape: tuple[int, ...]) -> torch.Tensor:
        key = (address, shape)
        if key not in self._views:
            self._views[key] = device_view(address, shape, "<f4", "cuda")
        return self._views[key]

    def keep(self, shapes: frozenset[Shape]) -> None:
        self._views.clear()


class Network(Engine):
    """What both networks share: `isnet_trt.engines.base.Engine` on the host."""

    kind = "test"
    description = "a network of the GPU tests"
    no_graph = ""

    def __init__(self, classes: int, stride: int) -> None:
        self.classes, self.stride = classes, stride

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(B, K, ceil(H / s), ceil(W / s))."""
        return shape[0], self.classes, *coarse_size((shape[2], shape[3]), self.stride)

    def compute(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Write the logits of ``source`` to ``target``, both float32 on the GPU, on the current stream."""
        raise NotImplementedError

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        raise NotImplementedError

    def on_device(self) -> DeviceForm:
        return DeviceForm(self)

    def close(self) -> None:
        """Nothing to give back."""


class Strided(Network):
    """Class k of a position is w[k] · (R, G, B) of the normalised pixel at ``stride`` times that position."""

    def __init__(self, classes: int, stride: int, seed: int) -> None:
        super().__init__(classes, stride)
        self._weights = np.random.default_rng(seed).standard_normal((classes, 3)).astype(np.float32)

    def compute(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Nothing is allocated, so that a CUDA graph can hold it."""
        red, green, blue = (source[:, c, :: self.stride, :: self.stride] for c in range(3))
        for k, (r, g, b) in enumerate(self._weights.tolist()):
            torch.mul(red, r, out=target[:, k])
            target[:, k].add_(green, alpha=g).add_(blue, alpha=b)

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        small = batch[:, :, :: self.stride, :: self.stride]
        return np.ascontiguousarray(np.einsum("kc,bchw->bkhw", self._weights, small))


class Torch(Network):
    """The inference form of a model under PyTorch on ``device``, in ``float32`` without TF32 or in ``float16``."""

    no_graph = "PyTorch allocates while it runs"

    def __init__(self, model: Any, classes: int, stride: int, dtype: str, device: str = "cuda") -> None:
        from isnet_trt.training.model import inference_form

        super().__init__(classes, stride)
        self.dtype, self.device = getattr(torch, dtype), device
        self.model = inference_form(model).to(device, self.dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.description = f"PyTorch {torch.__version__}, {dtype}"

    def logits(self, source: torch.Tensor) -> torch.Tensor:
        """Logits float32 of ``source`` (B, 3, H, W)."""
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            return self.model(source.to(self.dtype, memory_format=torch.channels_last)).float()

    def compute(self, source: torch.Tensor, target: torch.Tensor) -> None:
        target.copy_(self.logits(source))

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self.logits(torch.from_numpy(batch).to(self.device)).contiguous().cpu().numpy())
