"""One way to the memory of any object: numpy, DLPack, ``__cuda_array_interface__`` or the buffer protocol."""

from __future__ import annotations

from typing import Any

import numpy as np

from isnet_trt.pictures.dlpack import of_dlpack
from isnet_trt.pictures.memory import Memory, of_array, of_buffer, of_cuda_interface


def memory_of(source: Any, stream: int | None) -> Memory | None:
    """The memory of an object by whatever protocol it has, None without any; Refused if it cannot be used.

    ``stream`` is the CUDA stream on which GPU memory will be used. DLPack comes before the CUDA interface, since it
    lets the producer wait.
    """
    if isinstance(source, np.ndarray):
        return of_array(source)
    if isinstance(source, bytes):  # numpy's own subclass has __array_interface__, as a string
        return of_array(np.frombuffer(source, np.uint8))
    return of_dlpack(source, stream) or of_cuda_interface(source) or of_buffer(source)
