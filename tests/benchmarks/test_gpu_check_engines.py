"""The small graphs of the GPU check: valid, of the stated arithmetic, and built by TensorRT-RTX without a GPU."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from benchmarks.gpu_check import context, engines, rtx
from benchmarks.gpu_check.check import Answer, CannotRun, Setup
from isnet_trt.engines.table import library as library_of
from isnet_trt.kernels import attention, region_pool

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="there is no tensorrt-rtx wheel for this platform"
)


def under_onnxruntime(model: bytes, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})[0]


def distance(made: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(made - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize(("dtype", "bound"), [("fp32", 1e-5), ("fp16", rtx.ERRORS["fp16"])])
def test_the_small_network_is_what_float64_says(dtype: str, bound: float) -> None:
    model = engines.small_network(dtype, seed=4)
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    image = np.random.default_rng(1).standard_normal((2, 3, 33, 33)).astype(np.float32)
    wanted = rtx.in_float64(model, image)
    assert distance(under_onnxruntime(model, image), wanted) <= bound
    other = rtx.in_float64(engines.small_network(dtype, seed=5), image)
    assert distance(other, wanted) > 0.1  # a wrong network is far off


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_eight_bits_are_near_sixteen(dtype: str) -> None:
    shape = (1, 16, 9, 11)
    image = np.random.default_rng(2).standard_normal(shape).clip(-4, 4).astype(np.float16)
    made, wanted = (
        ReferenceEvaluator(onnx.load_from_string(engines.convolution(kind, shape, 16, 3, 2, seed=3)))
        .run(None, {"image": image})[0]
        .astype(np.float64)
        for kind in (dtype, "fp16")
    )
    assert 1e-4 < distance(made, wanted) <= rtx.EIGHT_BITS[dtype]


def test_the_head_is_the_two_context_operations() -> None:
    batch, classes, size = 2, 5, (7, 9)
    model = context.head("fp32", 6, batch, classes, size)
    onnx.checker.check_model(onnx.load_from_string(model))
    image = np.random.default_rng(3).standard_normal((batch, context.FEATURES, *size)).astype(np.float32)
    held = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load_from_string(model).graph.initializer}
    features = image.reshape(batch, context.FEATURES, -1).transpose(0, 2, 1).astype(np.float64)
    scores = np.einsum("kc,bnc->bkn", held["w_coarse"][:, :, 0, 0].astype(np.float64), features)
    centres, counts = region_pool.reference(scores, features)
    q, k, v = (features @ held[f"w_{name}"] for name in "qkv")
    near = attention.reference(q, k, v, np.zeros((batch, k.shape[1])), context.SCALE)
    far = attention.reference(q, centres @ held["w_k"], centres @ held["w_v"], counts, context.SCALE)
    wanted = (np.concatenate([near, far], 2) @ held["w_out"]).transpose(0, 2, 1).reshape(batch, classes, *size)
    assert distance(under_onnxruntime(model, image), wanted) <= 1e-5


@pytest.mark.rtx
@needs_rtx
def test_engines_of_every_precision_build_and_refusals_are_in_words() -> None:
    library = library_of("tensorrt-rtx").load()
    assert len(engines.build(library, engines.small_network("bf16", 1), "SM89")) > 10_000
    with pytest.raises(engines.BuildFailed, match="fp8_e4m3"):
        engines.build(library, engines.convolution("fp8", (1, 64, 8, 8), 64, 3, 1, 1), "SM80")
    with pytest.raises(engines.BuildFailed, match=r"NotThere|Plugin not found"):
        engines.build(library, unknown_operator())


def unknown_operator() -> bytes:
    model = onnx.load_from_string(engines.small_network("fp32", 1))
    model.graph.node[2].op_type = "NotThere"
    return model.SerializeToString()


@pytest.mark.rtx
@needs_rtx
def test_a_target_that_was_seen_running_is_taken_and_without_one_it_says_so() -> None:
    seen = Setup(known={"rtx.runs.default": {"ran": []}, "rtx.runs.SM80": {"ran": ["fp16"]}})
    assert rtx.running_target(seen) == "SM80"
    with pytest.raises(CannotRun, match="no target"):
        rtx.running_target(Setup())


def test_types_are_read_from_the_inspectors_text_or_it_is_shown() -> None:
    assert "cannot be read" in rtx.types_of("something else")


@pytest.mark.rtx
@pytest.mark.slow
@needs_rtx
def test_what_needs_no_gpu_is_really_built() -> None:
    parts: list = []
    answer = Answer(lambda word, content: parts.append((word, content)))
    rtx.ahead_of_time(answer, Setup(quick=True))
    assert [word for word, _ in parts] == ["row"] * 5
