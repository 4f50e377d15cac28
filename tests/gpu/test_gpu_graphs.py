"""The graphs of the GPU's engine tests: of the stated arithmetic, and built by TensorRT-RTX without a GPU.

And how the tests judge, with a TensorRT whose engines are ONNX Runtime sessions on the addresses they are given.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cuda_host import ReferenceKernels
from onnx.reference import ReferenceEvaluator

from isnet_trt import export
from isnet_trt.engines.tensorrt_rtx import LIBRARY as RTX
from isnet_trt.errors import BuildError
from isnet_trt.kernels import attention, region_pool
from tests.gpu import engines, test_gpu_bundles, test_gpu_engines
from tests.gpu.engines import BuildFailed, Loaded
from tests.gpu.host import HostTarget, use_cpu
from tests.gpu.record import CannotRun, Record
from tests.gpu.target import Target

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="there is no tensorrt-rtx wheel for this platform"
)
distance = test_gpu_engines.distance


def under_onnxruntime(model: bytes, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})[0]


@pytest.mark.parametrize(("dtype", "bound"), [("fp32", 1e-5), ("fp16", test_gpu_engines.ERRORS["fp16"])])
def test_the_small_network_is_what_float64_says(dtype: str, bound: float) -> None:
    model = engines.small_network(dtype, seed=4)
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    image = np.random.default_rng(1).standard_normal((2, 3, 33, 33)).astype(np.float32)
    expected = engines.in_float64(model, image)
    assert distance(under_onnxruntime(model, image), expected) <= bound
    other = engines.in_float64(engines.small_network(dtype, seed=5), image)
    assert distance(other, expected) > 0.1  # a wrong network is far off


@pytest.mark.parametrize("dtype", engines.EIGHT_BITS)
def test_eight_bits_are_near_sixteen(dtype: str) -> None:
    shape = (1, 16, 9, 11)
    image = np.random.default_rng(2).standard_normal(shape).clip(-4, 4).astype(np.float16)
    values, expected = (
        ReferenceEvaluator(onnx.load_from_string(engines.convolution(kind, shape, 3, 2, seed=3)))
        .run(None, {"image": image})[0]
        .astype(np.float64)
        for kind in (dtype, "fp16")
    )
    assert 1e-4 < distance(values, expected) <= test_gpu_engines.EIGHT_BITS[dtype]


def test_the_head_is_the_two_context_operations() -> None:
    batch, classes, size = 2, 5, (7, 9)
    model = engines.head("fp32", 6, batch, classes, size)
    onnx.checker.check_model(onnx.load_from_string(model))
    image = np.random.default_rng(3).standard_normal((batch, engines.FEATURES, *size)).astype(np.float32)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load_from_string(model).graph.initializer}
    features = image.reshape(batch, engines.FEATURES, -1).transpose(0, 2, 1).astype(np.float64)
    scores = np.einsum("kc,bnc->bkn", weights["w_coarse"][:, :, 0, 0].astype(np.float64), features)
    centres, counts = region_pool.reference(scores, features)
    q, k, v = (features @ weights[f"w_{name}"] for name in "qkv")
    near = attention.reference(q, k, v, np.zeros((batch, k.shape[1])), engines.SCALE)
    far = attention.reference(q, centres @ weights["w_k"], centres @ weights["w_v"], counts, engines.SCALE)
    expected = (np.concatenate([near, far], 2) @ weights["w_out"]).transpose(0, 2, 1).reshape(batch, classes, *size)
    assert distance(under_onnxruntime(model, image), expected) <= 1e-5


@pytest.mark.rtx
@needs_rtx
def test_engines_build_and_refusals_have_the_librarys_reason() -> None:
    library = RTX.load()
    assert len(engines.build(library, engines.small_network("bf16", 1), "SM89")) > 10_000
    with pytest.raises(BuildFailed, match="fp8_e4m3"):
        engines.build(library, engines.convolution("fp8", (1, 64, 8, 8), 3, 1, 1), "SM80")
    model = onnx.load_from_string(engines.small_network("fp32", 1))
    model.graph.node[2].op_type = "NotThere"
    with pytest.raises(BuildFailed, match=r"NotThere|Plugin not found"):
        engines.build(library, model.SerializeToString())


@pytest.mark.rtx
@pytest.mark.slow
@needs_rtx
@pytest.mark.parametrize("target", test_gpu_engines.TARGETS[1:])
def test_engines_of_every_target_build_without_a_gpu(target: str) -> None:
    """Every precision, with plugins too; the native form is not built in half precision for 8.9 and 12.0
    ("Fusing attention ops must leave the graph in a well-formed state")."""
    from isnet_trt.cuda import plugins

    library = RTX.load()
    RTX.allow_plugins(library)
    for dtype in (*engines.FLOATS, *engines.EIGHT_BITS):
        plain = dtype in engines.FLOATS
        model = engines.small_network(dtype, 1) if plain else engines.convolution(dtype, (1, 64, 16, 24), 3, 1, 1)
        if dtype == "fp8" and target in ("SM80", "SM86"):  # there are no units for it
            with pytest.raises(BuildFailed):
                engines.build(library, model, target)
            continue
        assert engines.build(library, model, target)
        if plain:
            with plugins.kernels_for(library) as host:
                plugged = engines.build(library, engines.head(dtype, 1, *test_gpu_engines.HEADS["small"]), target)
            assert host.failures == []
            assert all(name in plugged for name in (b"RegionPool", b"ContextAttention"))


class Library:
    """A TensorRT of which an engine is the graph itself; ``unable`` are precisions that it refuses to build."""

    __name__, __version__ = "double", "10.6.0"
    LayerInformationFormat = SimpleNamespace(ONELINE="oneline")
    ILogger = type("ILogger", (), {"Severity": SimpleNamespace(ERROR="error", INTERNAL_ERROR="internal error")})

    def __init__(self, *unable: str) -> None:
        self.unable, self.wrong = unable, 0.0

    def build(self, library: Any, model: bytes, target: str = "default") -> bytes:
        """In the place of `engines.build`."""
        proto = onnx.TensorProto
        names = {proto.BFLOAT16: "bf16", proto.FLOAT8E4M3FN: "fp8", proto.INT8: "int8"}
        kinds = {names.get(t.data_type) for t in onnx.load_from_string(model).graph.initializer}
        if refused := kinds & set(self.unable):
            raise BuildFailed(f"no {refused.pop()} for {target}")
        return model

    def Runtime(self, log: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda model: Engine(self, model))


class Engine:
    """An engine and its execution context."""

    def __init__(self, library: Library, model: bytes) -> None:
        self.library, self.at = library, dict[str, int]()
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.shape: tuple[int, ...] = ()

    def create_execution_context(self) -> Engine:
        return self

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda form: "layers in words of its own")

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="HALF" if self.session.get_outputs()[0].type == "tensor(float16)" else "FLOAT")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.at[name] = address

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.session.get_outputs()[0].shape)

    def execute_async_v3(self, stream: int) -> bool:
        half = self.session.get_inputs()[0].type == "tensor(float16)"
        image = at(self.at["image"], self.shape, np.float16 if half else np.float32)
        result = self.session.run(None, {"image": np.array(image)})[0]
        at(self.at["logits"], result.shape, result.dtype)[...] = result + self.library.wrong * result.std()
        return True


def at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    use_cpu(monkeypatch)
    double = Library("bf16", "fp8", "int8")  # ONNX Runtime has no eight bits in float16
    monkeypatch.setattr(engines, "build", double.build)
    monkeypatch.setattr("isnet_trt.engines.library.Library.load", lambda self: double)
    return double


@pytest.fixture
def target(tmp_path: Path) -> HostTarget:
    return HostTarget(tmp_path, ReferenceKernels)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path / "record.jsonl", {"rtx.runs.default": {"ran": []}, "rtx.runs.SM86": {"ran": ["fp16"]}})


def test_an_engine_that_runs_one_that_is_refused_and_one_that_is_wrong(
    library: Library, record: Record, target: HostTarget
) -> None:
    test_gpu_engines.test_runs(record, target, "tensorrt-rtx", "SM80")
    assert record.figures["ran"] == ["fp32", "fp16"]
    answers = {row["precision"]: row["answer"] for row in record.rows}
    assert answers == {"fp32": "runs", "fp16": "runs", "bf16": "BuildFailed: no bf16 for SM80"}
    assert all(row["relative error"] < 5e-3 for row in record.rows if row["answer"] == "runs")
    assert not record.wrong
    library.wrong = 0.5
    test_gpu_engines.test_runs(record, target, "tensorrt-rtx", "default")
    assert [text.split(",")[0] for text in record.wrong] == [f"{d} of target default runs" for d in ("fp32", "fp16")]


def test_a_library_that_cannot_start_here_is_a_row_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, record: Record, target: HostTarget
) -> None:
    """As where the driver is too old for it: `Builder` throws TypeError, and the reason was logged."""

    class Refusing(Library):
        def Builder(self, log: Any) -> Any:
            log.errors.append("CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr("isnet_trt.engines.library.Library.load", lambda self: Refusing())
    with pytest.raises(CannotRun, match="no precision of target default runs here"):
        test_gpu_engines.test_runs(record, target, "tensorrt", "default")
    reason = "BuildFailed: the library creates no Builder: CUDA initialization failure with error: 35"
    assert [row["answer"].split(";")[0] for row in record.rows] == [reason] * 3
    assert not record.wrong


def test_layers_are_compared_one_by_one_and_a_failure_costs_its_own(
    library: Library, record: Record, target: HostTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_gpu_engines, "LAYERS", {"1x1": ((1, 8, 5, 6), 1, 1), "3x3": ((2, 8, 5, 7), 3, 2)})
    test_gpu_engines.test_precisions(record, target, "tensorrt-rtx")
    assert record.figures["target"] == "SM86"  # the first that was seen running
    assert [row["layer"] for row in record.rows] == ["1x1", "3x3"]
    assert all(row["fp16 µs"] > 0 for row in record.rows)
    assert {one["what"] for one in record.missing} >= {"1x1 int8", "3x3 fp8"}
    output = test_gpu_engines.output

    def broken(target: Any, loaded: Any, shape: Any, *rest: Any) -> Any:
        if shape == (1, 8, 5, 6):
            raise RuntimeError("CUDA error: invalid argument")
        return output(target, loaded, shape, *rest)

    monkeypatch.setattr(test_gpu_engines, "output", broken)
    test_gpu_engines.test_precisions(record, target, "tensorrt")
    assert "fp16 µs" in record.rows[-1]
    assert record.wrong[0].startswith("1x1 fp16: RuntimeError: CUDA error: invalid argument")
    with pytest.raises(CannotRun, match="no target"):
        test_gpu_engines.running_target(Record(target.folder / "none.jsonl"), "tensorrt-rtx")


def test_a_library_that_ran_nothing_is_not_built_with(tmp_path: Path) -> None:
    """Compiling kernels for its plugins would take minutes."""
    refused = Record(tmp_path / "a.jsonl", {"trt.runs": {"ran": []}})
    with pytest.raises(CannotRun, match=r"no precision of TensorRT was seen running here \(trt.runs\)"):
        test_gpu_engines.running_target(refused, "tensorrt")
    assert test_gpu_engines.running_target(Record(tmp_path / "b.jsonl"), "tensorrt") == "default"


def test_a_build_that_has_failed_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tests use one bundle; the test of the build itself tries it again."""
    builds: list[Path] = []

    def fails(ckpt: Path, folder: Path, **options: object) -> None:
        builds.append(folder)
        raise BuildError("TensorRT refuses the graph")

    monkeypatch.setattr(export, "build", fails)
    folder = tmp_path / "demo-tensorrt-fp32"
    with pytest.raises(BuildError):
        test_gpu_bundles.build(tmp_path, folder, "tensorrt", "fp32")
    with pytest.raises(CannotRun, match="demo-tensorrt-fp32 has failed before: BuildError: TensorRT refuses"):
        test_gpu_bundles.build(tmp_path, folder, "tensorrt", "fp32")
    monkeypatch.setattr(test_gpu_bundles, "require", lambda kind: None)
    with pytest.raises(BuildError):
        test_gpu_bundles.test_bundles(Record(tmp_path / "r.jsonl"), Target(tmp_path), "tensorrt", "fp32", "plugin")
    assert builds == [folder, folder]


def test_a_difference_between_eight_bits_and_sixteen_is_judged(record: Record) -> None:
    plain, cells = torch.randn(2, 3), {"fp16 µs": 10.0, "int8 µs": 5.0}
    test_gpu_engines.compare_eight_bits(record, "layer", "int8", plain * 1.01, plain, cells)
    assert cells["int8 times as fast as fp16"] == 2
    assert not record.wrong
    test_gpu_engines.compare_eight_bits(record, "layer", "int8", -plain, plain, cells)
    assert "layer in int8 is off from float16" in record.wrong[0]
    assert "cannot be read" in test_gpu_engines.types_of("something else")


def test_plugins_and_bodies_are_compared_and_a_native_form_that_does_not_build_costs_its_comparison(
    library: Library, record: Record, target: HostTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def plugged(*arguments: Any) -> Iterator[Any]:
        yield SimpleNamespace(failures=[])

    monkeypatch.setattr("isnet_trt.cuda.plugins.kernels_for", plugged)
    variant = SimpleNamespace(kernels=lambda name: None, multiprocessors=3)
    target.variants = lambda: [variant]  # type: ignore[method-assign, list-item]
    monkeypatch.setattr(test_gpu_engines, "HEADS", {"one": (2, 19, (7, 9)), "two": (1, 19, (7, 9))})
    monkeypatch.setattr(test_gpu_engines, "FLOATS", {"fp32": 1})
    test_gpu_engines.test_plugins(record, target, "tensorrt")
    assert [row["difference"] for row in record.rows] == [0, 0]
    assert record.rows[0]["plugin µs"] > 0
    # A replay of the double writes nothing: the poison must be found.
    message = "the replay of a CUDA graph gives another result than the eager run"
    assert record.wrong == [f"one fp32: {message}", f"two fp32: {message}"]
    calls: list[int] = []

    def build(*arguments: Any) -> bytes:
        calls.append(1)
        if len(calls) == 1:
            raise BuildFailed("Fusing attention ops must leave the graph in a well-formed state.")
        return library.build(*arguments)

    monkeypatch.setattr(engines, "build", build)
    monkeypatch.setattr(Loaded, "replays_equal", lambda self: True)
    again = Record(target.folder / "again.jsonl")
    test_gpu_engines.test_plugins(again, target, "tensorrt")
    assert again.wrong == []
    assert [one["what"] for one in again.missing] == ["one fp32, native form"]
    assert set(again.rows[0]) == {"case", "precision", "replay equal", "plugin µs"}
    assert again.rows[1]["difference"] == 0
