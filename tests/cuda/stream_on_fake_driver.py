"""The stream of an engine on the real cuda-bindings and a driver that is none; run by test_engine_stream.py."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from isnet_trt.cuda import driver
from isnet_trt.cuda.stream import Stream
from isnet_trt.errors import EngineError, OutOfMemory

LIBRARY = ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)


def left() -> tuple[list[int], int]:
    """Memory, staging, streams, events, graphs and modules that are left, and contexts pushed."""
    counts = (ctypes.c_int * 6)()
    LIBRARY.fake_left(counts)
    return list(counts), LIBRARY.fake_depth()


def main() -> None:
    stream = Stream(driver.import_driver())
    there, back = np.arange(35, dtype=np.float32), np.zeros(35, np.float32)
    with stream.active():
        stream.buffer("batch", 4)
        address = stream.buffer("logits", there.nbytes)
        assert stream.buffer("logits", 8) == address
        stream.upload(address, there)
        stream.download(back, address)
        stream.wait()
        assert (back == there).all()
        stream.buffer("batch", 4096)
        assert left() == ([2, 0, 1, 0, 0, 0], 1), left()
        with pytest.raises(OutOfMemory, match=r"cuMemAlloc failed: out of memory \(2\); use a smaller picture"):
            stream.buffer("batch", 1 << 30)
        assert stream.handle > 0
    with pytest.raises(EngineError, match="invalid device context"):
        stream.wait()
    stream.close()
    stream.close()
    assert left() == ([0] * 6, 0), left()
    print("as it should be")


if __name__ == "__main__":
    main()
