"""The protocols of engines: the network on any device, and on a GPU."""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from isnet_trt.cuda import protocols
from isnet_trt.errors import EngineError

AnyEngine = TypeVar("AnyEngine", bound="Engine")


class Engine(Protocol):
    """A loaded network on one device: normalised images in, logits out.

    Not safe for two threads at once; open one engine per thread. As a context manager it closes itself.
    """

    kind: str
    """The library's name, one of `isnet_trt.engines.table.KINDS`."""

    description: str
    """Library, version and device in one line, for people."""

    keep_memory: bool = False
    """Whether `run` may keep its working memory, since a batch of the same image size follows at once."""

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raw logits (B, K, ceil(H/s), ceil(W/s)) float32, s the model's output stride, of ``batch`` (B, 3, H, W).

        ``batch`` is normalised RGB, C-contiguous float32. The result belongs to the caller.

        Raises:
            EngineError: the engine failed or was closed.
        """
        ...

    def close(self) -> None:
        """Give memory and device back; closing twice is harmless."""
        ...

    def __enter__(self: AnyEngine) -> AnyEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class DeviceEngine(Engine, protocols.DeviceEngine, Protocol):
    """An engine on a GPU, which also reads and writes device memory (`isnet_trt.cuda.protocols.DeviceEngine`)."""

    no_kernels: str
    """Why ``kernels`` is None."""

    stream: int
    """The one stream that `enqueue` works on; 0: any."""

    @property
    def kernels(self) -> protocols.Launcher | None:
        """The bundle's kernels for this GPU, loaded; closed with the engine."""
        ...


def check_batch(batch: NDArray[np.float32]) -> None:
    """Raise EngineError unless ``batch`` is a non-empty C-contiguous float32 array of shape (B, 3, H, W)."""
    if batch.dtype != np.float32 or batch.ndim != 4 or batch.shape[1] != 3 or 0 in batch.shape:
        raise EngineError(f"an engine takes float32 (B, 3, H, W), not {batch.dtype} {batch.shape}")
    if not batch.flags.c_contiguous:
        raise EngineError("an engine takes a C-contiguous batch; use numpy.ascontiguousarray")
