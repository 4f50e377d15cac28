"""ONNX Runtime's CUDA provider: what this machine refuses for real, the rest with a session that runs on the CPU.

The double claims to have the CUDA provider and computes with the real ONNX Runtime on "device" addresses that are the
host's. It says nothing about the provider itself.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tiny_model
from small_bundle import expected, save_model, write_bundle
from tensorrt_double import Cuda

from isnet_trt import Segmenter
from isnet_trt.bundle import CUDA_ONNX, ENGINE, ONNX
from isnet_trt.cuda.element_types import ELEMENT_TYPES
from isnet_trt.cuda.gpu import Gpu
from isnet_trt.engines import onnxruntime_cuda as module
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.onnxruntime import LIBRARY
from isnet_trt.engines.onnxruntime_cpu import OnnxRuntimeEngine
from isnet_trt.engines.onnxruntime_cuda import PROVIDER, OnnxRuntimeCudaEngine
from isnet_trt.errors import EngineError, EngineUnavailable, SettingsError
from isnet_trt.runtime.opening import open_engine

GPU = Gpu("NVIDIA Double", "8.9", "CUDA 13.0")
has_cuda = PROVIDER in onnxruntime.get_available_providers()


class Binding:
    """The real ``IOBinding``, told the host's memory where it is told the GPU's."""

    def __init__(self, session: onnxruntime.InferenceSession, numbers: list[int]) -> None:
        self.real, self.numbers = session.io_binding(), numbers

    def bind_input(self, name: str, device: str, number: int, *rest: Any) -> None:
        assert device == "cuda"
        self.numbers.append(number)
        self.real.bind_input(name, "cpu", 0, *rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def bind_output(self, name: str, device: str, number: int = 0, *rest: Any) -> None:
        if device == "cpu":
            self.real.bind_output(name, device)
            return
        assert device == "cuda"
        self.numbers.append(number)
        self.real.bind_output(name, "cpu", 0, *rest)


class Session(SimpleNamespace):
    """A session, which can be watched."""


class Runtime:
    """The module ``onnxruntime`` of the package onnxruntime-gpu."""

    __version__ = "1.32.0"
    SessionOptions = onnxruntime.SessionOptions
    RunOptions = onnxruntime.RunOptions
    GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel

    def __init__(self) -> None:
        self.loads = True
        self.lacking = ""
        self.preloaded = 0
        self.options: dict[str, str] = {}
        self.bound: list[int] = []
        self.called: Any = lambda: None
        self.refused: dict[str, str] = {}
        """Option of the provider -> what the real one says where it refuses it."""
        self.fails: dict[str, str] = {}
        """Option of the provider -> with what a run of a session that has it fails."""
        self.gpu: Any = None
        self.graphs: list[tuple[Any, dict[str, str]]] = []
        """Input shape and options of each session for a CUDA graph."""

    def get_available_providers(self) -> list[str]:
        return [PROVIDER] * (self.preloaded > 0) + ["CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        self.preloaded += 1
        if self.lacking:
            print(f"Failed to load {self.lacking}: no such file")

    def InferenceSession(self, path: str, options: Any, providers: list[Any], enable_fallback: int) -> Any:
        if providers == ["CPUExecutionProvider"]:
            return onnxruntime.InferenceSession(path, options, providers)
        assert self.preloaded, "libraries are looked for when the provider is made"
        ((name, self.options),) = providers
        assert name == PROVIDER
        self.called()
        for option, message in self.refused.items():
            if option in self.options:
                raise RuntimeError(message)
        real = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        if "enable_cuda_graph" in self.options:
            self.graphs.append((real.get_inputs()[0].shape, self.options))
        return Session(
            get_providers=lambda: [PROVIDER] * self.loads + ["CPUExecutionProvider"],
            get_inputs=real.get_inputs,
            get_outputs=real.get_outputs,
            run=lambda outputs, feed, options, chosen=self.options: self.run(
                chosen, options, lambda: self.called() or real.run(outputs, feed)
            ),
            io_binding=lambda: Binding(real, self.bound),
            run_with_iobinding=lambda binding, options, chosen=self.options: self.run(
                chosen, options, lambda: real.run_with_iobinding(binding.real)
            ),
        )

    def run(self, chosen: dict[str, str], options: Any, work: Any) -> Any:
        """Run ``work`` at once; that of a CUDA graph in its turn on the stream."""
        for option, message in self.fails.items():
            if option in chosen:
                raise RuntimeError(message)
        if "enable_cuda_graph" not in chosen:
            return work()
        assert options.get_run_config_entry("gpu_graph_id") == "1"
        return self.gpu.put(int(chosen["user_compute_stream"]), work)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    double = Runtime()
    monkeypatch.setattr(type(LIBRARY), "load", lambda self: double)
    monkeypatch.setattr(module, "probe_gpu", lambda index=0: (GPU, ""))
    return double


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return Cuda().install(monkeypatch)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model.onnx")


def _batch(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


@pytest.mark.skipif(has_cuda, reason="this ONNX Runtime has the CUDA provider")
def test_without_the_provider_it_says_what_to_install(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "small").folder
    with pytest.raises(EngineUnavailable, match=r"lacks; pip uninstall onnxruntime, then pip install onnxruntime-gpu"):
        Segmenter.open(folder, device="cuda")


def test_without_a_gpu(runtime: Runtime, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "probe_gpu", lambda index=0: (None, "no NVIDIA driver is installed"))
    with pytest.raises(EngineUnavailable, match="needs an NVIDIA GPU and its driver: no NVIDIA driver"):
        OnnxRuntimeCudaEngine(runtime, path, (3, 8))


def test_a_provider_that_does_not_load_is_no_silent_cpu(
    runtime: Runtime, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime.loads, runtime.lacking = False, "libcudnn.so.9"
    message = r"could not load it: .* are missing \(Failed to load libcudnn\.so\.9: no such file\); pip uninstall onnx"
    with pytest.raises(EngineUnavailable, match=message):
        OnnxRuntimeCudaEngine(runtime, path, (3, 8))
    assert capsys.readouterr().out == ""


def test_from_and_to_host_memory(runtime: Runtime, path: Path) -> None:
    with OnnxRuntimeCudaEngine(runtime, path, (3, 8)) as engine:
        assert engine.description == ("ONNX Runtime 1.32.0, CUDA provider on NVIDIA Double (compute capability 8.9)")
        assert runtime.options["use_tf32"] == "0"
        assert "user_compute_stream" not in runtime.options
        batch = _batch(2, 3, 16, 24)
        np.testing.assert_allclose(engine.run(batch), expected(batch), atol=1e-5)  # float32
    with pytest.raises(EngineError, match="closed"):
        engine.run(batch)


def test_on_device_memory_and_its_stream(runtime: Runtime, path: Path, cuda: Cuda) -> None:
    with OnnxRuntimeCudaEngine(runtime, path, (3, 8), on_device=True) as engine:
        assert runtime.options["user_compute_stream"] == str(engine.stream)
        assert list(cuda.gpu.streams) == [engine.stream]
        for shape in ((1, 3, 16, 24), (2, 3, 8, 8)):
            batch, out = _batch(*shape), np.zeros((shape[0], 3, shape[2] // 8, shape[3] // 8), np.float32)
            assert engine.output_shape(shape) == out.shape
            engine.enqueue(batch.ctypes.data, out.ctypes.data, shape, engine.stream)
            np.testing.assert_allclose(out, expected(batch), atol=1e-5)  # float32
        with pytest.raises(EngineError, match="in device memory on its own stream only"):
            engine.enqueue(batch.ctypes.data, out.ctypes.data, shape, engine.stream + 1)
        assert engine.no_graph(frozenset(), engine.stream).startswith("ONNX Runtime's runs cannot be captured, it capt")
        assert engine.kernels is None
        assert "holds no kernels" in engine.no_kernels
    with (
        OnnxRuntimeCudaEngine(runtime, path, (3, 8)) as engine,
        pytest.raises(EngineError, match="if it was opened for that"),
    ):
        engine.enqueue(batch.ctypes.data, out.ctypes.data, shape, 0)


def test_on_another_gpu_whose_choice_ends_with_each_call(
    runtime: Runtime, path: Path, cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def set_device() -> None:
        """As cudaSetDevice, which the provider calls: it replaces the context that is current in the thread."""
        cuda.gpu.stacks.setdefault(threading.get_ident(), [])[-1:] = [cuda.gpu.primaries[1]]

    second = Gpu("NVIDIA Double", "8.9", "CUDA 13.0", index=1)
    monkeypatch.setattr(module, "probe_gpu", lambda index: (second, "") if index == 1 else (None, "no such GPU"))
    runtime.called = set_device
    cuda.push()
    with OnnxRuntimeCudaEngine(runtime, path, (3, 8), on_device=True, gpu=1) as engine:
        assert runtime.options["device_id"] == "1"
        assert "NVIDIA Double (cuda:1)" in engine.description
        assert cuda.gpu.owners[engine.stream] is cuda.gpu.primaries[1]
        batch, out = _batch(1, 3, 16, 24), np.zeros((1, 3, 2, 3), np.float32)
        np.testing.assert_allclose(engine.run(batch), expected(batch), atol=1e-5)  # float32
        engine.enqueue(batch.ctypes.data, out.ctypes.data, batch.shape, engine.stream)
        assert runtime.bound == [1, 1]
    assert cuda.gpu.stacks.pop(threading.get_ident()) == [cuda.primary]
    cuda.gpu.nothing_is_left()


def test_the_session_goes_before_its_stream(runtime: Runtime, path: Path, cuda: Cuda) -> None:
    engine = OnnxRuntimeCudaEngine(runtime, path, (3, 8), on_device=True)
    alive: list[bool] = []
    weakref.finalize(engine._session, lambda: alive.append(engine.stream in cuda.gpu.streams))
    engine.close()
    assert alive == [True]
    cuda.gpu.nothing_is_left()
    runtime.loads = False
    with pytest.raises(EngineUnavailable):
        OnnxRuntimeCudaEngine(runtime, path, (3, 8), on_device=True)
    cuda.gpu.nothing_is_left()


def test_an_answer_of_another_shape_is_an_error(runtime: Runtime, path: Path, cuda: Cuda) -> None:
    with OnnxRuntimeCudaEngine(runtime, path, (4, 8), on_device=True) as engine:
        batch, out = _batch(1, 3, 8, 8), np.zeros((1, 4, 1, 1), np.float32)
        with pytest.raises(EngineError, match=r"ONNX Runtime failed on an input of shape \(1, 3, 8, 8\): "):
            engine.enqueue(batch.ctypes.data, out.ctypes.data, (1, 3, 8, 8), engine.stream)


def _on_device(engine: OnnxRuntimeCudaEngine, batch: np.ndarray) -> np.ndarray:
    """The logits of a batch that lies in device memory of its own, by `enqueue`; the device is current."""
    device = engine._device
    assert device is not None
    kind = np.dtype(ELEMENT_TYPES[engine.output_type].numpy)
    logits = np.empty(engine.output_shape(batch.shape), kind)
    source, target = device.allocate(batch.nbytes), device.allocate(logits.nbytes)
    ctypes.memmove(source, batch.ctypes.data, batch.nbytes)
    engine.enqueue(source, target, batch.shape, engine.stream)
    device.synchronize(engine.stream)
    ctypes.memmove(logits.ctypes.data, target, logits.nbytes)
    device.free(source)
    device.free(target)
    return logits


@pytest.mark.parametrize(("logits", "error"), [("fp16", 2e-3), ("bf16", 2e-2)])
def test_logits_in_half_precision(runtime: Runtime, tmp_path: Path, cuda: Cuda, logits: str, error: float) -> None:
    """They are written as they are on the device, operator by operator and from a graph; `run` gives float32."""
    runtime.gpu = cuda.gpu
    batch = _batch(2, 3, 16, 24)
    tiny_model.write_model(tmp_path / "plain.onnx", 5)
    path = tiny_model.write_model(tmp_path / "half.onnx", 5, logits=logits)
    engine = OnnxRuntimeCudaEngine(runtime, path, (5, 8), on_device=True)
    with engine, engine._device:
        assert engine.output_type == logits
        host = engine.run(batch)
        assert host.dtype == np.float32
        expected_logits = OnnxRuntimeEngine(onnxruntime, tmp_path / "plain.onnx", 1).run(batch)
        assert 0 < np.abs(host - expected_logits).max() < error
        for times in range(3):
            np.testing.assert_array_equal(_on_device(engine, batch).astype(np.float32), host)
            assert len(runtime.graphs) == (times > 0)


def test_a_shape_that_repeats_is_held_in_a_cuda_graph(runtime: Runtime, path: Path, cuda: Cuda) -> None:
    runtime.gpu = cuda.gpu
    engine = OnnxRuntimeCudaEngine(runtime, path, (3, 8), on_device=True, precision="fp16")
    with engine, engine._device:
        for times in range(4):
            batch = _batch(1, 3, 16, 24) + times
            np.testing.assert_allclose(_on_device(engine, batch), expected(batch), atol=1e-5)  # float32
            assert len(runtime.graphs) == (times > 0)  # the first time costs no session
        ((shape, options),) = runtime.graphs
        assert shape == [1, 3, 16, 24]
        assert options["prefer_nhwc"] == options["fuse_conv_bias"] == options["enable_cuda_graph"] == "1"
        assert "without" not in engine.description
        shapes = [(1, 3, 8, 8 * width) for width in range(1, module.GRAPHS + 1)]
        for shape in shapes * 3:
            _on_device(engine, _batch(*shape))
        assert list(engine._graphs) == [(1, 3, 16, 24), *shapes[:-1]]  # the last one runs without
        assert len(runtime.graphs) == module.GRAPHS
        engine.keep(frozenset(shapes[:1]))
        assert list(engine._graphs) == shapes[:1]
        _on_device(engine, _batch(*shapes[1]))
        assert list(engine._graphs) == shapes[:1]  # it has to repeat again
        _on_device(engine, _batch(*shapes[1]))
        assert list(engine._graphs) == shapes[:2]
    cuda.gpu.nothing_is_left()


CONTROL_FLOW = (
    "[ONNXRuntimeError] : 1 : FAIL : This session cannot use the graph capture feature as requested by the user as the "
    "model has control flow nodes which can't be supported by CUDAExecutionProvider"
)
"""What onnxruntime-gpu 1.31.1 says of a graph with a Scan."""


@pytest.mark.parametrize("moment", ["session", "run"])
def test_where_a_cuda_graph_is_refused(runtime: Runtime, path: Path, cuda: Cuda, moment: str) -> None:
    (runtime.refused if moment == "session" else runtime.fails)["enable_cuda_graph"] = CONTROL_FLOW
    engine = OnnxRuntimeCudaEngine(runtime, path, (3, 8), on_device=True)
    with engine, engine._device:
        for _ in range(3):
            batch = _batch(1, 3, 16, 24)
            np.testing.assert_allclose(_on_device(engine, batch), expected(batch), atol=1e-5)  # float32
        assert "the network without CUDA graphs: ONNX Runtime" in engine.description
        assert "model has control flow nodes" in engine.description
        assert len(runtime.graphs) == (moment == "run")  # tried once
    cuda.gpu.nothing_is_left()


@pytest.mark.parametrize("moment", ["session", "run"])
def test_an_option_that_does_not_work_here_is_left_out(runtime: Runtime, path: Path, moment: str) -> None:
    message = 'provider_options_utils.h:182 Parse Unknown provider option: "fuse_conv_bias".'  # of 1.31.1
    (runtime.refused if moment == "session" else runtime.fails)["fuse_conv_bias"] = message
    with OnnxRuntimeCudaEngine(runtime, path, (3, 8), precision="fp16") as engine:
        batch = _batch(1, 3, 16, 24)
        np.testing.assert_allclose(engine.run(batch), expected(batch), atol=1e-5)  # float32
        assert "prefer_nhwc" not in runtime.options
        assert runtime.options["use_tf32"] == "0"


def test_what_is_needed_is_never_left_out(runtime: Runtime, path: Path) -> None:
    runtime.refused["use_tf32"] = "Unknown provider option"
    with pytest.raises(EngineError, match=r"cannot load .*: Unknown provider option"):
        OnnxRuntimeCudaEngine(runtime, path, (3, 8))


def test_auto_takes_it_where_a_gpu_is_there(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = write_bundle(tmp_path / "small")
    eight = write_bundle(tmp_path / "eight", precision="int8")
    compiled = write_bundle(tmp_path / "rtx", EngineInfo("tensorrt-rtx", "1.7.0", ENGINE, ("8.6",)))
    with open_engine(plain) as engine:  # no GPU
        assert "CPU" in engine.description
    monkeypatch.setattr("isnet_trt.engines.select.probe_gpu", lambda index=0: (GPU, ""))
    with open_engine(plain) as engine:
        assert "CUDA provider on NVIDIA Double" in engine.description
    for kind, device in (("onnxruntime", "auto"), (None, "cpu")):
        with open_engine(plain, kind, device=device) as engine:
            assert "CPU" in engine.description
    with open_engine(eight) as engine:
        assert "CPU" in engine.description
    with open_engine(compiled) as engine:
        assert "CUDA provider on NVIDIA Double (compute capability 8.9); not with tensorrt-rtx: " in engine.description
        assert "tensorrt-rtx" in caplog.records[-1].message
    runtime.loads, runtime.lacking = False, "libcudnn.so.9"
    with Segmenter.open(plain.folder) as segmenter:
        assert (
            "; not on the GPU: ONNX Runtime 1.32.0 has a CUDA provider but could not load it" in segmenter.description
        )
        assert segmenter(np.zeros((9, 9, 3), np.uint8)).labels.shape == (9, 9)
    with pytest.raises(EngineUnavailable, match="could not load it"):
        open_engine(compiled)


def test_on_request(runtime: Runtime, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "small")
    with open_engine(bundle, device="cuda") as engine:
        assert "CUDA provider on NVIDIA Double" in engine.description
    with Segmenter.open(bundle.folder, device="cuda") as segmenter:
        assert segmenter.description.endswith("all other stages on the host (the bundle holds no kernels; "
                                              "build it again with python -m isnet_trt.build)")  # fmt: skip
        assert segmenter(np.zeros((9, 9, 3), np.uint8)).labels.shape == (9, 9)


def test_the_graph_for_the_gpu_and_the_one_for_a_cpu(runtime: Runtime, tmp_path: Path) -> None:
    shapes = (1, 3, 8, 8), (4, 3, 16, 16), (4, 3, 64, 64)
    bundle = write_bundle(tmp_path / "two", EngineInfo("onnxruntime", "1.31.1", CUDA_ONNX, shapes=shapes))
    opened: list[str] = []
    real = runtime.InferenceSession
    names = {(bundle.folder / name).read_bytes(): name for name in (ONNX, CUDA_ONNX)}
    runtime.InferenceSession = lambda model, *rest, **more: opened.append(names[model]) or real(model, *rest, **more)
    for device in ("cpu", "cuda"):
        open_engine(bundle, device=device).close()
    assert opened == [ONNX, CUDA_ONNX]
    for device, batch in (("cpu", 1), ("cuda", 4)):
        with Segmenter.open(bundle, device=device) as segmenter:
            assert segmenter.batch == batch


def test_devices_that_there_are(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "small")
    with pytest.raises(SettingsError, match="device 'gpu' is unknown; use 'auto', 'cpu', 'cuda'"):
        open_engine(bundle, device="gpu")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="engine 'tensorrt' runs on a GPU only"):
        open_engine(bundle, "tensorrt", device="cpu")
    with open_engine(bundle, device="cpu") as engine:
        assert "CPU" in engine.description


@pytest.mark.skipif(not has_cuda, reason="this ONNX Runtime has no CUDA provider")
def test_the_real_provider(path: Path) -> None:
    with OnnxRuntimeCudaEngine(onnxruntime, path, (3, 8)) as engine:
        batch = _batch(2, 3, 16, 24)
        np.testing.assert_allclose(engine.run(batch), expected(batch), atol=1e-5)  # float32
