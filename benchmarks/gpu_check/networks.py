"""Networks for the runtime checks, each in a host form and in a form on device memory that computes the same.

`Strided` is a network of three products per value: host and GPU agree to rounding, so that everything around the
network can be compared at full size in seconds. `Torch` is the real network under PyTorch on the GPU, for machines on
which no engine library runs.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_check.place import device
from isnet_trt.merging.geometry import coarse_size

Shape = tuple[int, int, int, int]


class _View:
    """Float32 device memory of somebody else, as PyTorch takes it without a copy."""

    def __init__(self, address: int, shape: tuple[int, ...]) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": "<f4", "data": (address, False), "version": 3, "strides": None,
        }  # fmt: skip


class DeviceForm:
    """A network as the pipeline wants it: `isnet_trt.cuda.protocols.DeviceEngine`."""

    def __init__(self, network: Network, no_graph: str = "") -> None:
        self._network, self._no_graph = network, no_graph
        self._views: dict[tuple[int, tuple[int, ...]], Any] = {}

    def no_graph(self, shapes: frozenset[Shape], stream: int) -> str:
        """See `isnet_trt.cuda.protocols.DeviceEngine`."""
        return self._no_graph

    def output_shape(self, shape: Shape) -> tuple[int, ...]:
        """See `isnet_trt.cuda.protocols.DeviceEngine`."""
        return self._network.output_shape(shape)

    def enqueue(self, input_address: int, output_address: int, shape: Shape, stream: int) -> None:
        """See `isnet_trt.cuda.protocols.DeviceEngine`."""
        import torch

        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            source = self._view(input_address, shape)
            self._network.compute(source, self._view(output_address, self.output_shape(shape)))

    def _view(self, address: int, shape: tuple[int, ...]) -> Any:
        import torch

        key = (address, shape)
        if key not in self._views:
            self._views[key] = torch.as_tensor(_View(address, shape), device=device())
        return self._views[key]

    def keep(self, shapes: frozenset[Shape]) -> None:
        """See `isnet_trt.cuda.protocols.DeviceEngine`."""
        self._views.clear()


class Network:
    """What both networks share: `isnet_trt.engines.base.Engine` on the host."""

    kind = "check"
    description = "a network of the GPU check"
    no_graph = ""

    def __init__(self, classes: int, stride: int) -> None:
        self.classes, self.stride = classes, stride

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(B, K, ceil(H / s), ceil(W / s))."""
        return shape[0], self.classes, *coarse_size((shape[2], shape[3]), self.stride)

    def compute(self, source: Any, target: Any) -> None:
        """Write the logits of ``source`` to ``target``, float32 PyTorch tensors on the GPU, on the current stream."""
        raise NotImplementedError

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `isnet_trt.engines.base.Engine.run`."""
        raise NotImplementedError

    def on_device(self) -> DeviceForm:
        """The form that the pipeline takes."""
        return DeviceForm(self, self.no_graph)

    def close(self) -> None:
        """Nothing to give back."""

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Strided(Network):
    """Class k of a position is w[k] · (R, G, B) of the normalised pixel at ``stride`` times that position."""

    def __init__(self, classes: int, stride: int, seed: int) -> None:
        super().__init__(classes, stride)
        self._weights = np.random.default_rng(seed).standard_normal((classes, 3)).astype(np.float32)

    def compute(self, source: Any, target: Any) -> None:
        """See `Network.compute`; nothing is allocated, so that a CUDA graph can hold it."""
        import torch

        red, green, blue = (source[:, c, :: self.stride, :: self.stride] for c in range(3))
        for k, (r, g, b) in enumerate(self._weights.tolist()):
            torch.mul(red, r, out=target[:, k])
            target[:, k].add_(green, alpha=g).add_(blue, alpha=b)

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `isnet_trt.engines.base.Engine.run`."""
        small = batch[:, :, :: self.stride, :: self.stride]
        return np.ascontiguousarray(np.einsum("kc,bchw->bkhw", self._weights, small))


class Torch(Network):
    """The inference form of a model under PyTorch on the GPU, in ``dtype`` (``float32`` without TF32, ``float16``).

    Not captured in CUDA graphs: PyTorch allocates while it runs.
    """

    no_graph = "PyTorch allocates while it runs"

    def __init__(self, model: Any, classes: int, stride: int, dtype: str) -> None:
        import torch

        from benchmarks.peers.networks import channels_last
        from isnet_trt.training.model import inference_form

        super().__init__(classes, stride)
        self.dtype = getattr(torch, dtype)
        self.model = channels_last(inference_form(model).to(device(), self.dtype))
        self.description = f"PyTorch {torch.__version__}, {dtype}"

    def logits(self, source: Any) -> Any:
        """Logits float32 of ``source`` (B, 3, H, W), both on the GPU."""
        import torch

        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            return self.model(source.to(self.dtype, memory_format=torch.channels_last)).float()

    def compute(self, source: Any, target: Any) -> None:
        """See `Network.compute`."""
        target.copy_(self.logits(source))

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `isnet_trt.engines.base.Engine.run`."""
        import torch

        return np.asarray(self.logits(torch.from_numpy(batch).to(device())).contiguous().cpu().numpy())
