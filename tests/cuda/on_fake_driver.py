"""The device, the kernels and the pipeline on the real libraries and a driver that is none.

Run by test_cuda_libraries.py with the fake libcuda.so.1 on the loader's path; the argument is the backend's name.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import logging.handlers
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isnet_trt.cuda import driver
from isnet_trt.cuda.device import Device
from isnet_trt.cuda.gpu import Gpu, find_gpu
from isnet_trt.cuda.kernels import Kernels
from isnet_trt.errors import EngineError, OutOfMemory

LIBRARY = ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)
LIBRARY.fake_log.restype = ctypes.c_char_p


def left() -> tuple[list[int], int]:
    """Memory, staging, streams, events, graphs and modules that are left, and contexts pushed."""
    counts = (ctypes.c_int * 6)()
    LIBRARY.fake_left(counts)
    return list(counts), LIBRARY.fake_depth()


def open_device(backend: str) -> Device:
    """As a process with or without pycuda opens it."""
    if backend == "cuda-bindings":
        sys.modules["pycuda"] = None  # type: ignore[assignment]
    device = Device.open()
    assert device.backend == backend, device.backend
    return device


def check_device(device: Device) -> None:
    assert find_gpu() == Gpu("Fake GPU", "8.9", "CUDA 13.0", 4)
    with device:
        stream, event = device.create_stream(), device.create_event()
        staging, memory = device.allocate_staging(100), device.allocate(100)
        staging[:] = np.arange(100)
        assert device.gpu_of(memory) == device.index == 0
        device.copy(memory, staging.ctypes.data, 100, stream)
        device.fill(memory + 10, 7, 5, stream)
        device.copy_rows(staging.ctypes.data, 10, memory, 20, 8, 5, stream)
        device.record(event, stream)
        device.wait_event(stream, event)
        device.synchronize_event(event)
        device.synchronize(stream)
        rows = np.array(staging[:50]).reshape(5, 10)
        assert (rows[:, :8] == np.arange(100).reshape(5, 20)[:, :8]).all()
        assert (rows[:, 8:] == np.arange(50).reshape(5, 10)[:, 8:]).all()
        assert device.memory_info() == (1 << 20, 1 << 28)
        check_graph(device, stream, memory)
        check_host_memory(device, stream, memory)
        with pytest.raises(OutOfMemory):
            device.allocate(1 << 30)
        with pytest.raises(EngineError, match=r"cuStreamGetPriority failed: .*cuStreamGetPriority is not found"):
            driver.call(driver.import_driver(), "cuStreamGetPriority", stream)
    assert left() == ([1, 1, 1, 1, 0, 0], 0)


def check_graph(device: Device, stream: int, memory: int) -> None:
    values = (ctypes.c_ubyte * 3).from_address(memory)
    with device.capture(stream) as graph:
        device.fill(memory, 9, 3, stream)
    assert list(values) == [0, 1, 2]
    graph.launch(stream)
    assert list(values) == [9, 9, 9]
    graph.close()


def check_host_memory(device: Device, stream: int, memory: int) -> None:
    """Memory that is not page-locked, up and down."""
    there, back = np.arange(25, dtype=np.float32), np.zeros(25, np.float32)
    device.upload(memory, there, stream)
    device.download(back, memory, stream)
    device.synchronize(stream)
    assert (back == there).all()


def check_threads(device: Device) -> None:
    """Memory may be given back in another thread than it was taken in, and the device closed in a third."""
    with device:
        staging, memory = device.allocate_staging(10), device.allocate(10)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with device:
                device.free_staging(staging)
                device.free(memory)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []
    with pytest.raises(EngineError, match="context"):
        device.allocate(5)


def write_kernels(folder: Path, entries: dict[str, tuple[bytes, dict[str, Any]]]) -> None:
    """A folder of kernels for the driver, each with its code and what its entry has beside `ENTRY`."""
    (folder / "sm_89").mkdir(exist_ok=True)
    kernels = {}
    for name, (code, fields) in entries.items():
        kernels[name] = ENTRY | {"entry": name, "cubin_sha256": hashlib.sha256(code).hexdigest()} | fields
        (folder / "sm_89" / f"{name}.cubin").write_bytes(code)
    data = {"schema": 1, "arch": "sm_89", "classes": 3, "kernels": kernels}
    (folder / "sm_89" / "launch.json").write_text(json.dumps(data), "utf-8")


ENTRY = {
    "target": "sm_89", "trailing_null_pointers": 0, "constants": {}, "unaligned": [], "grid": [[], [], []],
    "threads": 128, "shared_bytes": 0, "ptx_sha256": "",
}  # fmt: skip


def check_tensor_maps(device: Device, folder: Path) -> None:
    """A map is encoded for each address and size, and passed by value; what the driver refuses goes as a pointer."""
    fields = {"arguments": [["k", "*fp16"], ["batch", "i32"], ["keys", "i32"]], "fallback": "pointers"}
    tensor = {"shape": ["batch", "keys", 256], "box": [1, 64, 64], "swizzle": 128}
    unfit = {"box": tensor | {"box": [1, 64, 128]}, "rows": tensor | {"shape": ["batch", "keys", 12]}}
    maps = {name: (b"miiilllii", fields | {"maps": {"k": value}}) for name, value in ({"maps": tensor} | unfit).items()}
    write_kernels(folder, maps | {"pointers": (b"pii", {"arguments": fields["arguments"]})})
    kernels, handler = Kernels.open(folder, "8.9"), logging.handlers.BufferingHandler(100)
    logging.getLogger("isnet_trt").addHandler(handler)
    before = len(LIBRARY.fake_log().decode().splitlines())
    with device:
        stream = device.create_stream()
        kernels.launch("maps", stream, k=0xABC0, batch=2, keys=71)
        with device.capture(stream) as graph:
            kernels.launch("maps", stream, k=0xABD0, batch=2, keys=3)
        kernels.launch("maps", stream, k=0xABC0, batch=2, keys=71)
        graph.launch(stream)
        graph.close()
        for name in unfit:
            kernels.launch(name, stream, k=0xABC0, batch=2, keys=71)
        kernels.launch("maps", stream, k=0xABC0, batch=2, keys=0)
        with pytest.raises(EngineError, match="k is at 0xabc8, no multiple of 16"):
            kernels.launch("maps", stream, k=0xABC8, batch=2, keys=71)
    first = "maps 1,1,1 128,1,1 0: map:6:abc0:3:3:256/512/64:71/36352/64:2/0/1 2 71 256 18176 256 1 2 71"
    second = first.replace("abc0", "abd0").replace("71/36352", "3/1536").replace(" 71", " 3").replace("18176", "768")
    pointers = "pointers 1,1,1 128,1,1 0: abc0 2 71"
    log = LIBRARY.fake_log().decode().splitlines()[before:]
    assert log == [first, first, second, pointers, pointers, pointers.replace("71", "0")], log
    messages = [record.getMessage() for record in handler.buffer]
    assert len(messages) == 3, messages
    assert "cuTensorMapEncodeTiled failed for fp16 (2, 71, 256) at 0xabc0: some error (1); pointers is" in messages[0]
    assert "strides of [1704, 24] bytes must be multiples of 16; pointers is launched instead" in messages[1]
    assert "a tensor of (2, 0, 256) elements has no descriptor" in messages[2]
    logging.getLogger("isnet_trt").removeHandler(handler)
    kernels.close()


def check_kernels(device: Device, folder: Path) -> None:
    """What the driver is given: the parameters in order, the grid, the null pointers at the end."""
    code = b"pillfpp"
    arguments = [["source", "*u8"], ["rows", "i32"], ["pitch", "i64"], ["at", "i64"], ["step", "fp32"]]
    fields = {"arguments": arguments, "trailing_null_pointers": 2, "shared_bytes": 60000, "entry": "kernel_0"}
    write_kernels(folder, {"one": (code, fields | {"grid": [[["rows", 2]], [["rows", 3]], []]})})
    kernels = Kernels.open(folder, "8.9")
    with device:
        stream = device.create_stream()
        given = {"step": 0.25, "at": -5, "pitch": 1 << 33, "rows": 7, "source": 0xABC0}
        kernels.launch("one", stream, **given)
        with device.capture(stream) as graph:
            kernels.launch("one", stream, **(given | {"rows": 9}))
        graph.launch(stream)
        graph.launch(stream)
        graph.close()
    lines = LIBRARY.fake_log().decode().splitlines()
    expected = "kernel_0 4,3,1 128,1,1 60000: abc0 7 8589934592 -5 0.25 0 0"
    assert lines == [expected, *[expected.replace(": abc0 7", ": abc0 9").replace(" 4,", " 5,")] * 2], lines
    assert left()[0][5] == 1
    kernels.close()
    assert left()[0][5] == 0


def check_pipeline(device: Device, folder: Path) -> None:
    """A label map through all of it, one step after the other; kernels and network run on the host at once."""
    import tiny_model
    from cuda_host import Form, HostEngine, ReferenceKernels, picture

    from isnet_trt import Inference
    from isnet_trt.cuda.pipeline import Pipeline
    from isnet_trt.pictures.interop import image_from

    class AtOnce(HostEngine):
        def enqueue(self, source: int, target: int, shape: Any, stream: int) -> None:
            from cuda_host import at

            answer = self.engine.run(np.ascontiguousarray(at(source, np.float32, *shape)))
            at(target, np.float32, *answer.shape)[...] = answer

    class Direct(ReferenceKernels):
        def __contains__(self, name: object) -> bool:
            return name in self.specs

    assert tiny_model.STRIDE == 8
    form = Form(folder, ReferenceKernels, batch=3)
    engine = AtOnce(form.gpu, form.path, form.model.head.classes, 8, "run at once")
    pipeline = Pipeline(device, Direct(form.model.head.classes), engine, form.model)
    slide = Inference("slide", (16, 24), (11, 16), (0.75, 1.0), flip=True)
    for seed, inference in ((0, Inference()), (1, slide), (2, Inference()), (3, slide)):
        image = picture(33, 47, seed)
        form.check(image, pipeline(image_from(image), inference), inference)
    del pipeline
    gc.collect()


def main(backend: str) -> None:
    device = open_device(backend)
    check_device(device)
    check_threads(device)
    with tempfile.TemporaryDirectory() as folder:
        check_kernels(device, Path(folder))
        check_tensor_maps(device, Path(folder))
        check_pipeline(device, Path(folder))
    assert left() == ([0] * 6, 0), left()
    print("as it should be")


if __name__ == "__main__":
    main(sys.argv[1])
