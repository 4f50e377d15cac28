"""The device with either backend against doubles of pycuda and cuda-bindings; what runs without a GPU runs for real."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import threading
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from children import environment, explained, run_python
from cuda_double import Driver, Gpu, Pycuda, open_device
from fake_libcuda import COMPILER

from isnet_trt.cuda import backends, driver
from isnet_trt.cuda import device as module
from isnet_trt.cuda.backends import Backend
from isnet_trt.cuda.device import Device
from isnet_trt.cuda.gpu import find_gpu
from isnet_trt.errors import EngineError, EngineUnavailable, OutOfMemory

no_gpu = pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")


@pytest.fixture(params=["late", "at once"])
def gpu(request: pytest.FixtureRequest) -> Gpu:
    double = Gpu(total=1 << 20)
    double.eager = request.param == "at once"
    return double


@pytest.fixture(params=["pycuda", "cuda-bindings"])
def device(gpu: Gpu, request: pytest.FixtureRequest):
    opened = open_device(gpu, request.param)
    assert opened.backend == request.param
    yield opened
    with opened:
        opened.close()
        opened.close()
    gpu.nothing_is_left()


def read(address: int, size: int) -> list[int]:
    return list((ctypes.c_uint8 * size).from_address(address))


def test_there_and_back(device):
    with device:
        stream, a, b = device.create_stream(), device.allocate(300), device.allocate(300)
        staging = device.allocate_staging(600)
        staging[:300] = np.arange(300) % 251
        device.copy(a, staging.ctypes.data, 300, stream)
        device.copy(b, a, 300, stream)
        device.fill(b + 10, 7, 5, stream)
        device.copy(staging.ctypes.data + 300, b, 300, stream)
        device.synchronize(stream)
        expected = np.arange(300) % 251
        expected[10:15] = 7
        assert (staging[300:] == expected).all()
        device.free(a)
        device.free_staging(staging)


def test_rows_with_a_pitch(device, gpu):
    with device:
        stream, memory, staging = device.create_stream(), device.allocate(64), device.allocate_staging(64)
        staging[:] = np.arange(64)
        device.copy_rows(memory, 5, staging.ctypes.data + 1, 20, 4, 3, stream)
        device.copy_rows(memory + 32, 4, staging.ctypes.data, 4, 4, 3, stream)
        device.synchronize(stream)
        assert read(memory, 15) == [1, 2, 3, 4, 165, 21, 22, 23, 24, 165, 41, 42, 43, 44, 165]
        assert read(memory + 32, 12) == list(range(12))
        assert gpu.calls.count("cuMemcpyAsync") == 1  # rows without gaps are one piece


def test_streams_wait_for_each_other(device):
    with device:
        first, second, event = device.create_stream(), device.create_stream(), device.create_event()
        memory, staging = device.allocate(4), device.allocate_staging(4)
        device.wait_event(second, event)  # marks nothing yet
        device.fill(memory, 9, 4, first)
        device.record(event, first)
        device.wait_event(second, event)
        device.copy(staging.ctypes.data, memory, 4, second)
        device.record(event, second)
        device.fill(memory, 8, 4, second)
        device.synchronize_event(event)
        assert list(staging) == [9, 9, 9, 9]
        device.synchronize(second)


def test_a_graph_runs_as_often_as_it_is_launched(device, gpu):
    with device:
        stream, memory, staging = device.create_stream(), device.allocate(4), device.allocate_staging(4)
        with device.capture(stream) as graph:
            device.copy(memory, staging.ctypes.data, 4, stream)
        staging[:] = [1, 2, 3, 4]
        device.synchronize(stream)
        assert read(memory, 4) == [165] * 4  # capturing runs nothing
        for value in (5, 6):
            staging[:] = value
            graph.launch(stream)
            device.synchronize(stream)
            assert read(memory, 4) == [value] * 4
        assert len(gpu.graphs) == 1
        graph.close()
        graph.close()


@pytest.mark.parametrize(
    "failing", ["cuStreamEndCapture", "cuGraphInstantiate", "in the block", "cuStreamBeginCapture"]
)
def test_a_capture_that_fails_leaves_nothing_and_a_stream_that_works(device, gpu, failing):
    def capture(stream: int) -> None:
        with device.capture(stream):
            device.fill(memory, 1, 4, stream)
            if failing == "in the block":
                raise EngineError("not in a capture")

    with device:
        stream, memory = device.create_stream(), device.allocate(4)
        gpu.fails["cuGraphInstantiate" if failing == "instantiate" else failing] = 901
        with pytest.raises(EngineError, match=r"not in a capture|capture was invalidated"):
            capture(stream)
        gpu.fails.clear()
        assert gpu.graphs == {}
        device.fill(memory, 3, 4, stream)
        device.synchronize(stream)
        assert read(memory, 4) == [3] * 4


def test_nothing_that_was_forgotten_is_finalised_in_the_middle_of_a_capture(device, gpu):
    """Python's garbage collector runs whenever enough objects have been made."""
    captured: list[bool] = []

    class Forgotten:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            captured.append(gpu.capturing is not None)

    gc.collect()
    with device:
        stream, memory = device.create_stream(), device.allocate(4)
        with device.capture(stream) as graph:
            device.fill(memory, 1, 4, stream)
            Forgotten()
            kept = [[] for _ in range(5000)]
        graph.close()
        assert gc.isenabled()
        del kept
        gc.collect()
        assert captured == [False]


def test_who_works_without_a_garbage_collector_stays_without(device):
    gc.disable()
    try:
        with device:
            stream = device.create_stream()
            with pytest.raises(EngineError, match="in the block"), device.capture(stream):
                raise EngineError("in the block")
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_errors_in_the_drivers_words(device, gpu):
    with device:
        stream, memory = device.create_stream(), device.allocate(4)
        with pytest.raises(OutOfMemory, match=r"out of memory( \(2\))?; use a smaller picture"):
            device.allocate(1 << 21)
        gpu.fails = {"cuMemsetD8Async": 2}
        with pytest.raises(OutOfMemory, match=r"cuMemsetD8Async failed: out of memory \(2\); use a smaller picture"):
            device.fill(memory, 0, 4, stream)
        gpu.fails = {"cuMemsetD8Async": 222}
        with pytest.raises(EngineError, match=r"cuMemsetD8Async failed: .* \(222\); upgrade the NVIDIA driver"):
            device.fill(memory, 0, 4, stream)
        gpu.fails = {"cuMemcpyAsync": 700, "cuStreamSynchronize": 700}
        with pytest.raises(EngineError, match=r"cuMemcpyAsync failed: an illegal memory access \(700\)"):
            device.copy(memory, memory, 4, stream)
        with pytest.raises(EngineError, match="cuStreamSynchronize failed"):
            device.synchronize(stream)
        gpu.fails.clear()
        assert device.memory_info() == ((1 << 20) - 4, 1 << 20)


def test_the_context_is_pushed_for_the_time_of_the_block(device, gpu):
    with pytest.raises(AssertionError, match="no context is current"):
        device.allocate(4)
    with device:
        with device:
            device.allocate(4)
        device.allocate(4)
    with pytest.raises(RuntimeError, match="in between"), device:
        raise RuntimeError("in between")
    assert not any(gpu.stacks.values())


def test_any_host_memory_goes_up_and_down(device, gpu):
    there, back = np.arange(6, dtype=np.float32), np.zeros(6, np.float32)
    with device:
        stream, memory = device.create_stream(), device.allocate(24)
        device.upload(memory, there, stream)
        device.download(back, memory, stream)
        device.synchronize(stream)
        assert (back == there).all()


def test_memory_is_given_back_in_any_thread(device):
    failed = []
    with device:
        staging, memory = device.allocate_staging(16), device.allocate(16)

    def work() -> None:
        try:
            with device:
                device.free(memory)
                device.free_staging(staging)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []


@pytest.mark.parametrize("backend", ["pycuda", "cuda-bindings"])
def test_a_lost_device_is_closed_without_a_word(backend):
    gpu = Gpu()
    device = open_device(gpu, backend)
    with device:
        device.create_event(), device.allocate(4), device.allocate_staging(4)
        gpu.fails = dict.fromkeys(("cuEventDestroy", "cuMemFree", "cuMemFreeHost"), 700)
        device.close()
    gpu.nothing_is_left()


class OldDriver(Driver):
    """cuda-bindings on a driver without some functions, and of a version without ``cuMemGetInfo``."""

    cuMemGetInfo = None

    def _missing(self, *arguments):
        raise pytest.importorskip("cuda.bindings._internal.utils").FunctionNotFoundError("function is not found")

    cuMemsetD8Async = cuGraphExecDestroy = cuGraphDestroy = cuModuleUnload = cuCtxPopCurrent = _missing


def test_functions_that_an_old_driver_lacks():
    """They are errors of ours where they are used, and are ignored where something is only given back."""
    device = Device(Backend(OldDriver(Gpu())))
    device.__enter__()
    stream = device.create_stream()
    with pytest.raises(EngineError, match="cuMemsetD8Async failed: function is not found; upgrade the NVIDIA driver"):
        device.fill(device.allocate(4), 0, 4, stream)
    with pytest.raises(EngineError, match=r"cuda-bindings \S+ has no cuMemGetInfo; pip install --upgrade"):
        device.memory_info()
    with device.capture(stream) as graph:
        pass
    graph.close()
    driver.Function(device._backend.api, b"code", "kernel", 0).unload()
    device.close()
    device.__exit__(None, None, None)


NO_FUNCTIONS = """
from isnet_trt.cuda.backends import open_backend
from isnet_trt.errors import EngineError
try:
    open_backend()
except EngineError as error:
    print(error)
"""


@no_gpu
@pytest.mark.skipif(sys.platform != "linux" or COMPILER is None, reason="a C compiler on Linux makes the driver")
def test_the_real_bindings_on_a_driver_without_functions(tmp_path):
    pytest.importorskip("cuda.bindings.driver")
    (tmp_path / "driver.c").write_text("int cuInit(unsigned flags) { return 0; }", "utf-8")
    library = tmp_path / "libcuda.so.1"
    subprocess.run([COMPILER, "-shared", "-fPIC", tmp_path / "driver.c", "-o", library], check=True)
    ran = run_python("-c", NO_FUNCTIONS, env=environment(LD_LIBRARY_PATH=str(tmp_path)))
    assert ran.returncode == 0, explained(ran)
    assert ran.stdout.startswith("cuInit failed: ")
    assert ran.stdout.strip().endswith("; upgrade the NVIDIA driver")


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """The GPU of cuda-bindings and pycuda, both doubles, in a process that has opened none."""
    gpu = Gpu()
    package, pycuda = ModuleType("pycuda"), Pycuda(gpu)
    package.driver = pycuda  # type: ignore[attr-defined]
    monkeypatch.setattr(backends, "_backends", {})
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", pycuda)
    monkeypatch.setattr(driver, "import_driver", lambda: Driver(gpu))
    monkeypatch.setattr(module, "probe_gpu", lambda index: (SimpleNamespace(), ""))
    return gpu


def test_pycuda_is_taken_where_it_is_installed(libraries):
    assert Device.open().backend == "pycuda"


def test_without_pycuda_cuda_bindings_do_the_same(libraries, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda", None)
    assert Device.open().backend == "cuda-bindings"


def test_a_pycuda_that_cannot_be_loaded_is_named(libraries, monkeypatch, tmp_path):
    (tmp_path / "pycuda").mkdir()
    (tmp_path / "pycuda" / "__init__.py").write_text("")
    (tmp_path / "pycuda" / "driver.py").write_text("raise ImportError('undefined symbol: cuInit')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pycuda")
    monkeypatch.delitem(sys.modules, "pycuda.driver")
    assert Device.open().backend == "cuda-bindings (pycuda cannot be imported: undefined symbol: cuInit)"


def test_the_backend_is_chosen_and_its_context_retained_once(libraries, monkeypatch):
    first = Device.open()
    monkeypatch.setitem(sys.modules, "pycuda", None)
    assert Device.open().backend == first.backend == "pycuda"
    assert libraries.retained == 1


def test_a_context_that_cannot_be_retained_is_tried_again(libraries, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda", None)
    libraries.fails["cuDevicePrimaryCtxRetain"] = 2
    with pytest.raises(OutOfMemory, match="cuDevicePrimaryCtxRetain failed: out of memory"):
        Device.open()
    libraries.fails.clear()
    assert Device.open().backend == "cuda-bindings"


@no_gpu
def test_without_a_gpu_no_cuda_package_is_asked():
    with pytest.raises(EngineUnavailable, match="needs an NVIDIA GPU and its driver: "):
        Device.open()
    assert "pycuda.driver" not in sys.modules


def test_without_cuda_bindings_it_says_what_to_install(libraries, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.setattr(module, "probe_gpu", lambda index: (SimpleNamespace(), ""))
    with pytest.raises(EngineUnavailable, match=r"cuda-bindings cannot be imported .*; pip install cuda-bindings"):
        Device.open()


def test_the_real_driver_api_has_every_name_in_use():
    api = pytest.importorskip("cuda.bindings.driver")
    for name in (name for name in vars(Driver) if name.startswith(("cu", "CU"))):
        assert hasattr(api, name), name
        for member in vars(getattr(Driver, name)) if name.startswith("CU") and name != "CUDA_MEMCPY2D" else ():
            assert hasattr(getattr(api, name), member), member
    what = api.CUDA_MEMCPY2D()
    for field in ("srcMemoryType", "dstMemoryType", "srcDevice", "srcPitch", "dstDevice", "dstPitch"):
        assert field in dir(what), field
    what.srcDevice, what.WidthInBytes, what.Height = 512, 3, 2
    what.srcMemoryType = api.CUmemorytype.CU_MEMORYTYPE_UNIFIED
    assert int(what.srcDevice) == 512


@no_gpu  # which would take these calls seriously
def test_the_real_driver_api_takes_what_it_is_given():
    """cuda-bindings converts arguments before it looks for the driver: a wrong one is a TypeError, these are not."""
    api = pytest.importorskip("cuda.bindings.driver")
    missing = pytest.importorskip("cuda.pathfinder").DynamicLibNotFoundError
    pointers = (ctypes.c_void_p * 1)()
    function, code, graph = api.CUfunction(), api.CUmodule(), api.CUgraph()
    rows = api.CUDA_MEMCPY2D()
    rows.srcMemoryType = rows.dstMemoryType = api.CUmemorytype.CU_MEMORYTYPE_UNIFIED
    rows.srcDevice, rows.srcPitch, rows.dstDevice, rows.dstPitch = 4096, 9, 8192, 7
    rows.WidthInBytes, rows.Height = 6, 5
    shared = api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    local = api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    calls = {
        "cuLaunchKernel": (function, 1, 2, 3, 128, 1, 1, 0, 77, ctypes.addressof(pointers), 0),
        "cuModuleLoadData": (b"code",), "cuModuleGetFunction": (code, b"resize"), "cuModuleUnload": (code,),
        "cuFuncSetAttribute": (function, shared, 65536), "cuCtxGetCurrent": (), "cuCtxPopCurrent": (),
        "cuCtxPushCurrent": (api.CUcontext(),), "cuMemcpyAsync": (4096, 8192, 5, 77), "cuMemcpy2DAsync": (rows, 77),
        "cuMemsetD8Async": (4096, 0, 5, 77), "cuEventCreate": (2,), "cuEventDestroy": (88,),
        "cuEventRecord": (88, 77), "cuStreamWaitEvent": (77, 88, 0), "cuEventSynchronize": (88,),
        "cuStreamSynchronize": (77,), "cuStreamCreate": (1,), "cuStreamDestroy": (77,),
        "cuInit": (0,), "cuDeviceGet": (0,), "cuDevicePrimaryCtxRetain": (0,), "cuMemGetInfo": (),
            "cuPointerGetAttribute": (api.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, 4096),
        "cuMemAlloc": (512,), "cuMemFree": (4096,), "cuMemHostAlloc": (512, 0), "cuMemFreeHost": (4096,),
        "cuMemcpyHtoDAsync": (4096, 8192, 5, 77), "cuMemcpyDtoHAsync": (8192, 4096, 5, 77),
        "cuStreamBeginCapture": (77, local), "cuStreamEndCapture": (77,),
        "cuGraphInstantiate": (graph, 0), "cuGraphDestroy": (graph,), "cuGraphExecDestroy": (api.CUgraphExec(),),
        "cuGraphLaunch": (api.CUgraphExec(), 77), "cuGetErrorString": (api.CUresult(2),),
        "cuGetProcAddress": (b"cuTensorMapEncodeTiled", 12000, 0),
    }  # fmt: skip
    assert set(calls) == {name for name in vars(Driver) if name.startswith("cu")}
    for name, arguments in calls.items():
        with pytest.raises(missing):
            getattr(api, name)(*arguments)
