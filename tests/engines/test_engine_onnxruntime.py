"""The ONNX Runtime engine on small real models: results, refusals, threads and memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from children import run_python
from onnx import TensorProto, helper
from onnx_networks import save_network
from small_bundle import expected, save_model
from tiny_model import write_model

from isnet_trt.engines import cores
from isnet_trt.engines.onnxruntime import open_onnx
from isnet_trt.errors import EngineError, InputShapeError, SettingsError

TOLERANCE = 1e-5  # float32 sums of 64 values around 1


def _batch(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (2, 3, 40, 24), (3, 3, 8, 136)])
def test_computes_what_the_model_says(tmp_path: Path, shape: tuple[int, ...], external: bool) -> None:
    path = save_model(tmp_path / "model.onnx", external=external)
    assert (tmp_path / "model.onnx.data").exists() == external
    batch = _batch(*shape)
    with open_onnx(path) as engine:
        logits = engine.run(batch)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected(batch), atol=TOLERANCE)


@pytest.mark.parametrize(("logits", "error"), [("fp16", 2e-3), ("bf16", 2e-2)])
def test_logits_in_half_precision_become_float32(tmp_path: Path, logits: str, error: float) -> None:
    batch, kinds = _batch(2, 3, 17, 24), ("fp32", logits)
    engines = [open_onnx(write_model(tmp_path / f"{kind}.onnx", 5, logits=kind)) for kind in kinds]
    exact, rounded = (engine.run(batch) for engine in engines)
    assert [engine.output_type for engine in engines] == ["fp32", logits]
    assert rounded.dtype == np.float32
    assert rounded.flags.owndata or rounded.base.flags.owndata  # not ONNX Runtime's memory
    assert 0 < np.abs(rounded - exact).max() < error


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (33, 65), (129, 250)])
def test_grid_of_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    with open_onnx(save_model(tmp_path / "model.onnx")) as engine:
        assert engine.run(_batch(1, 3, *size)).shape == (1, 3, -(-size[0] // 8), -(-size[1] // 8))


def test_results_own_their_memory(tmp_path: Path) -> None:
    with open_onnx(save_model(tmp_path / "model.onnx")) as engine:
        first = engine.run(_batch(1, 3, 64, 64))
        kept = first.copy()
        for _ in range(3):
            engine.run(2 * _batch(1, 3, 64, 64))
        first[0, 0, 0, 0] += 1  # and may be written to
    kept[0, 0, 0, 0] += 1
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((3, 8, 8), np.float32),
        np.zeros((1, 4, 8, 8), np.float32),
        np.zeros((1, 3, 8, 8)),
        np.zeros((1, 3, 8, 8), np.uint8),
        np.zeros((0, 3, 8, 8), np.float32),
        np.zeros((1, 3, 0, 8), np.float32),
        np.zeros((1, 8, 8, 3), np.float32).transpose(0, 3, 1, 2),
    ],
    ids=str,
)
def test_batches_that_no_engine_takes(tmp_path: Path, batch: np.ndarray) -> None:
    with open_onnx(save_model(tmp_path / "model.onnx")) as engine, pytest.raises(EngineError, match="an engine takes"):
        engine.run(batch)


def test_a_static_model_says_its_shape(tmp_path: Path) -> None:
    with open_onnx(save_model(tmp_path / "model.onnx", 16, 24)) as engine:
        assert engine.run(_batch(2, 3, 16, 24)).shape == (2, 3, 2, 3)
        with pytest.raises(InputShapeError, match=r"takes inputs of shape \(batch, 3, 16, 24\), not \(2, 3, 24, 16\)"):
            engine.run(_batch(2, 3, 24, 16))


def test_closed(tmp_path: Path) -> None:
    engine = open_onnx(save_model(tmp_path / "model.onnx"))
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(_batch(1, 3, 8, 8))


def test_not_a_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(EngineError, match=f"{path} does not exist"):
        open_onnx(path)
    whole = save_model(path).read_bytes()
    for content in (b"", b"\x80\x04N.", b"PK\x03\x04", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(EngineError, match=str(path)):
            open_onnx(path)


def test_external_data_missing(tmp_path: Path) -> None:
    path = save_model(tmp_path / "model.onnx", external=True)
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(EngineError, match=r"cannot load .*model\.onnx"):
        open_onnx(path)


@pytest.mark.parametrize("kind", ["two inputs", "two outputs", "float16", "three axes"])
def test_other_peoples_models(tmp_path: Path, kind: str) -> None:
    type_ = TensorProto.FLOAT16 if kind == "float16" else TensorProto.FLOAT
    shape = ["b", 3, "w"] if kind == "three axes" else ["b", 3, "h", "w"]
    names = ["x", "y"] if kind == "two inputs" else ["x"]
    inputs = [helper.make_tensor_value_info(name, type_, shape) for name in names]
    outputs = [helper.make_tensor_value_info(name, type_, shape) for name in ("u", "v")]
    nodes = [helper.make_node("Add", [names[0], names[-1]], ["u"]), helper.make_node("Relu", ["x"], ["v"])]
    graph = helper.make_graph(nodes, "other", inputs, outputs if kind == "two outputs" else outputs[:1])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(EngineError, match=r"model\.onnx is no segmentation model: it has"):
        open_onnx(tmp_path / "model.onnx")


def test_an_unknown_operation_is_named(tmp_path: Path) -> None:
    node = helper.make_node("RegionPool", ["x"], ["u"], domain="elsewhere")
    with pytest.raises(EngineError, match="RegionPool"):
        open_onnx(save_network(tmp_path / "model.onnx", [node], 3))


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_must_be_positive(tmp_path: Path, threads: int) -> None:
    with pytest.raises(SettingsError, match="threads"):
        open_onnx(save_model(tmp_path / "model.onnx"), threads=threads)


def test_description(tmp_path: Path) -> None:
    path = save_model(tmp_path / "model.onnx")
    assert open_onnx(path, threads=1).description.endswith("CPU, 1 thread")
    assert open_onnx(path, threads=3).description.endswith("CPU, 3 threads")
    assert open_onnx(path).kind == "onnxruntime"


def test_default_threads_follow_the_affinity_mask() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no affinity masks")
    command = (
        "import os; from isnet_trt.engines.cores import usable_cores;"
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); print(usable_cores())"
    )
    assert run_python("-c", command, check=True).stdout == "1\n"
    assert 1 <= cores.usable_cores() <= len(os.sched_getaffinity(0))


def test_hyper_threads_count_once(tmp_path: Path) -> None:
    for cpu, siblings in {0: "0,4", 1: "1,5", 4: "0,4", 5: "1,5"}.items():
        (tmp_path / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(f"{siblings}\n")
    assert cores._physical({0, 1, 4, 5}, tmp_path) == 2
    assert cores._physical({0, 4}, tmp_path) == 1
    assert cores._physical({7, 8}, tmp_path) == 2  # unknown ones are cores of their own


@pytest.mark.parametrize(
    ("text", "quota"), [("200000 100000\n", 2), ("150000 100000\n", 2), ("max 100000\n", 1 << 16), ("", 1 << 16)]
)
def test_container_quota(tmp_path: Path, text: str, quota: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cores._quota(tmp_path / "cpu.max") == quota
    assert cores._quota(tmp_path / "absent") == 1 << 16


_GREEDY = """
import resource, sys
import numpy as np
from isnet_trt.engines.onnxruntime import open_onnx
from isnet_trt.errors import EngineError
engine = open_onnx(sys.argv[1], threads=1)
batch = np.ones((1, 3, 8192, 8192), np.float32)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), used + (64 << 20)))
try:
    engine.run(batch)
except EngineError as error:
    print(error)
print(engine.run(np.ones((1, 3, 8, 8), np.float32)).shape)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space as Linux does")
def test_out_of_memory_is_an_error_and_the_engine_goes_on(tmp_path: Path) -> None:
    path = save_network(tmp_path / "model.onnx", [helper.make_node("Exp", ["x"], ["u"])], 3)
    result = run_python("-c", _GREEDY, path)
    lines = result.stdout.splitlines()
    assert "(1, 3, 8192, 8192)" in lines[0], result
    assert "use a smaller window or scale" in lines[0]
    assert lines[1] == "(1, 3, 8, 8)"


_GROWTH = """
import sys
import numpy as np
from isnet_trt.engines.onnxruntime import open_onnx
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
engine = open_onnx(sys.argv[1], threads=1)
engine.run(np.ones((1, 3, 64, 64), np.float32))
before = resident()
for side in range(1000, 3000, 100):
    engine.run(np.ones((1, 3, side, 3000), np.float32))
engine.run(np.ones((1, 3, 64, 64), np.float32))
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_large_pictures_do_not_keep_their_memory(tmp_path: Path) -> None:
    """Twenty sizes up to 100 MiB a tensor: with ONNX Runtime's own settings 440 MiB would stay, here 12 MiB do."""
    nodes = [helper.make_node("Exp", ["x"], ["a"]), helper.make_node("Sin", ["a"], ["c"])]
    nodes += [helper.make_node("Atan", ["c"], ["d"]), helper.make_node("Add", ["d", "a"], ["u"])]
    path = save_network(tmp_path / "model.onnx", nodes, 3)
    result = run_python("-c", _GROWTH, path, check=True)
    assert float(result.stdout) < 64


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts page faults as Linux does")
def test_memory_kept_for_the_next_batch_is_not_mapped_anew(tmp_path: Path) -> None:
    import resource

    def faults(keep: bool) -> int:
        engine.keep_memory = keep
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        engine.run(batch)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    nodes = [helper.make_node("Exp", ["x"], ["a"]), helper.make_node("Sin", ["a"], ["u"])]
    batch = np.ones((1, 3, 2000, 2000), np.float32)  # 46 MiB a tensor: glibc keeps none of that by itself
    with open_onnx(save_network(tmp_path / "model.onnx", nodes, 3), threads=1) as engine:
        mapped = [faults(keep) for keep in (False, True, True, False, False)]
    assert max(mapped[2:4]) < min(mapped[0], mapped[4]) / 2, mapped
