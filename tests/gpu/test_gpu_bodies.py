"""The GPU tests' own code on host memory, with the kernels' plain references: what is right passes, what is planted is
found. With the real kernels in Triton's interpreter: interpreted/check_bodies.py."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_libcuda
import numpy as np
import pytest
import torch
from children import explained

from isnet_trt import Segmenter
from isnet_trt.cuda.gpu import Gpu
from isnet_trt.cuda.pipeline import Pipeline
from isnet_trt.cuda.plan_steps import Plan
from isnet_trt.cuda.transfers import Slot, Transfers
from isnet_trt.engines.info import EngineInfo
from isnet_trt.errors import EngineError, EngineUnavailable, SettingsError
from isnet_trt.forks import OwnerProcess
from isnet_trt.pictures.preprocess import normalise
from isnet_trt.pictures.raw import RawLabels
from isnet_trt.settings import Inference, Preprocess
from tests.benchmarks import bench_bundles
from tests.gpu import test_gpu_bundles, test_gpu_callers, test_gpu_driver, test_gpu_runtime
from tests.gpu.comparison import Case, host, image, judge
from tests.gpu.host import LABELS, SMALL, target_of, use_cpu
from tests.gpu.networks import Network, Strided, Torch
from tests.gpu.record import CannotRun, Record
from tests.interpreter import NEEDED, run_checks, runs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="as the tests on a GPU, for Linux")
CALLER = Case("small", LABELS, Preprocess((47, 33)), Inference(), (33, 47))
DEMO = test_gpu_bundles.DEMO
# Asking the driver here would spoil the tests on the GPU, whose processes are forked from this one.
without_gpu = pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is an NVIDIA driver")


@NEEDED
@pytest.mark.parametrize(("path", "which"), runs(Path(__file__).parent / "interpreted"))
def test_interpreted(path: Path, which: str) -> None:
    run_checks(path, which)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path / "record.jsonl")


def test_another_network_and_a_missing_graph_are_found(record: Record, tmp_path: Path) -> None:
    test_gpu_runtime.test_stages(record, target_of(tmp_path, gain=-1, refused="it cannot be captured"))
    for message in (
        "of the labels are the host's",
        "clear pixels are the host's, not 100 %",
        "no CUDA graph was captured",
    ):
        assert any(message in text for text in record.wrong), message


def test_replays_are_compared_with_eager_runs(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_gpu_runtime.test_graphs(record, target_of(tmp_path))
    assert (record.wrong, record.figures) == ([], {"graphs": "CUDA graphs", "calls compared": 6})
    plain, calls = Pipeline.__call__, []

    def stale(self: Pipeline, *arguments: Any) -> Any:
        """From the fifth call on, the label map of the fourth again."""
        calls.append(plain(self, *arguments))
        return calls[3] if len(calls) > 4 else calls[-1]

    monkeypatch.setattr(Pipeline, "__call__", stale)
    test_gpu_runtime.test_graphs(record, target_of(tmp_path))
    assert any("the replay differs" in text for text in record.wrong)
    assert "two results share memory" in record.wrong


def test_memory_that_is_not_given_back_is_found(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cpu(monkeypatch)
    monkeypatch.setattr(test_gpu_runtime, "CALLS", 5)
    test_gpu_runtime.test_memory(record, target_of(tmp_path))
    assert not record.wrong
    free = iter([1 << 30, 1 << 29, 1 << 28, 1 << 29])
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (next(free), 1 << 31))
    test_gpu_runtime.test_memory(record, target_of(tmp_path))
    for message in ("were not given back", "open it holds", "after 5 calls than after 3"):
        assert any(message in text for text in record.wrong), message


class Stored(dict):
    """Stored outputs as a file of them presents itself."""

    @property
    def files(self) -> list[str]:
        return list(self)


def stored(network: Network, source: np.ndarray, shift: float = 0.0) -> Stored:
    """What would be stored of a network on an image."""
    pixels = normalise(source, Preprocess(source.shape[:2], keep_ratio=False)).transpose(2, 0, 1)[None]
    logits = network.run(np.ascontiguousarray(pixels, np.float32))[0] + np.float32(shift)
    index = np.arange(logits.size)[::3]
    return Stored(
        logits_f16=logits.astype(np.float16), logits_f32=logits.reshape(-1)[index], logits_idx=index,
        logits_argmax=logits.argmax(0),
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_stored_outputs_are_met_or_missed(record: Record, tmp_path: Path, precision: str) -> None:
    network, source, target = Strided(5, 8, 3), image((17, 20), 4), target_of(tmp_path)
    recipe = SimpleNamespace(
        labels=LABELS, default=Inference(), ms_flip=Inference(scales=(0.5, 1.0), flip=True), name="x"
    )
    target.quick = False
    test_gpu_runtime.compare_golden(record, target, network, recipe, source, stored(network, source), precision)
    assert not record.wrong
    names = [f"logits {precision}, stored", f"default {precision}", f"ms-flip {precision}"]
    assert [row["case"] for row in record.rows] == names
    target.quick = True
    test_gpu_runtime.compare_golden(record, target, network, recipe, source, stored(network, source, 3.0), precision)
    assert any("logits: max" in text for text in record.wrong)


def test_refusals_come_and_where_they_do_not_it_is_found(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_gpu_driver.test_out_of_memory(record, target_of(tmp_path))
    assert "not enough GPU memory for a picture of 16384x16384" in record.rows[0]["said"]
    test_gpu_driver.test_closed(record, target_of(tmp_path))
    assert not record.wrong
    monkeypatch.setattr(Pipeline, "_active", lambda self: (_ for _ in ()).throw(EngineError("something else")))
    with pytest.raises(EngineError):
        test_gpu_driver.test_closed(record, target_of(tmp_path))


def test_labels_of_one_class_are_no_comparison(record: Record) -> None:
    judge(record, "x", {"equal %": 100.0, "clear equal %": 100.0, "clear %": 90.0, "classes": 1})
    assert record.wrong == ["x: all pixels have one class: nothing was compared"]


def test_a_thread_that_fails_and_labels_that_differ_are_found(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_gpu_runtime, "CALLS_OF_A_THREAD", 4)
    test_gpu_runtime.test_threads(record, target_of(tmp_path))
    assert not record.wrong
    call = test_gpu_runtime.call
    calls: list[int] = []

    def other(pipeline: Any, source: Any, case: Case) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise EngineError("lost")
        return call(pipeline, source, case) + (len(calls) == 3)

    monkeypatch.setattr(test_gpu_runtime, "call", other)
    test_gpu_runtime.test_threads(record, target_of(tmp_path))
    assert any("EngineError: lost" in text for text in record.wrong)
    assert any("of 4 label maps are those made alone" in text for text in record.wrong)


def test_memory_of_the_caller_that_is_right_passes(record: Record, tmp_path: Path) -> None:
    test_gpu_callers.test_memory(record, target_of(tmp_path, CALLER))
    assert record.wrong == []
    assert len(record.rows) == 3 * 2 * 3 + 2
    assert {row["equal %"] for row in record.rows} == {100}


def test_wrong_images_and_label_maps_are_found(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def messages() -> list[str]:
        fresh = Record(tmp_path / "planted.jsonl")
        test_gpu_callers.test_memory(fresh, target_of(tmp_path, CALLER))
        return fresh.wrong

    monkeypatch.setattr(test_gpu_callers.Caller, "write", lambda self, tensor, values: None)
    assert any(text.startswith("picture, bgr, DLPack") for text in messages())
    monkeypatch.undo()
    labels = Transfers.labels

    def zeroed(self: Transfers, plan: Plan, slot: Slot, out: RawLabels | None) -> object:
        self._device.synchronize_event(slot.events["down"])
        slot.result.host[:] = 0
        return labels(self, plan, slot, out)

    monkeypatch.setattr(Transfers, "labels", zeroed)
    assert "all pixels have one class: nothing was compared" in messages()
    monkeypatch.undo()
    read = test_gpu_callers.Caller.read
    monkeypatch.setattr(
        test_gpu_callers.Caller, "read", lambda self, tensor: (read(self, tensor)[0] + 1, tensor.numpy())
    )
    texts = messages()
    assert "label map, pointer, stream given: 0.000 % of the labels are those of the host array" in texts
    assert "label map, pointer, stream given: written between the rows" in texts


def test_forks_are_refused_or_found_out(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_gpu_callers.test_fork(record, target_of(tmp_path, CALLER))
    assert record.wrong == []
    assert "cannot be used in process" in record.figures["what the child was told"]
    monkeypatch.setattr(OwnerProcess, "check", lambda self, what: None)
    test_gpu_callers.test_fork(record, target_of(tmp_path, CALLER))
    assert record.wrong == ["the child was not refused: it was not refused"]


def test_a_call_that_keeps_the_lock_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = {"keeps": ctypes.PyDLL(None).usleep, "hands over": ctypes.CDLL(None).usleep}
    labels = Transfers.labels
    for name, wrong in (("keeps", ["it keeps the lock"]), ("hands over", [])):

        def late(self: Transfers, *arguments: object, name: str = name) -> object:
            waits[name](150_000)
            return labels(self, *arguments)

        monkeypatch.setattr(Transfers, "labels", late)
        record = Record(tmp_path / "record.jsonl")
        test_gpu_callers.test_lock(record, target_of(tmp_path, CALLER))
        assert [text.split(": ")[-1] for text in record.wrong] == wrong
        assert len(record.figures["longest pause of the other thread, % of the call"]) == 6


def test_refusals_are_judged_by_type_and_words(record: Record) -> None:
    def refuse() -> None:
        raise EngineError("not enough GPU memory: 12 MiB")

    test_gpu_driver.refused(record, "a", refuse, EngineError, "memory", "MiB")
    assert not record.wrong
    test_gpu_driver.refused(record, "b", refuse, EngineError, "closed")
    test_gpu_driver.refused(record, "c", refuse, SettingsError)
    test_gpu_driver.refused(record, "d", lambda: None, EngineError)
    starts = ["b: the message lacks closed", "c ends in EngineError, not in SettingsError", "d was not refused"]
    assert all(text.startswith(start) for text, start in zip(record.wrong, starts, strict=True))


def test_an_engine_is_damaged_last(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bench_bundles.tiny(tmp_path / "bundle")
    (folder / "model.engine").write_bytes(bytes(range(256)) * 40)
    info = EngineInfo("tensorrt", "10.13", "model.engine", ("9.0",))
    manifest = SimpleNamespace(manifest=SimpleNamespace(engine=info))
    monkeypatch.setattr("isnet_trt.bundle.read_bundle", lambda path: manifest)
    order: list[str] = []
    monkeypatch.setattr(test_gpu_driver, "refused", lambda record, what, *rest: order.append(what))
    test_gpu_driver.damaged_engine(record, folder, "tensorrt")
    for_others = ["an engine for another GPU", "an engine of another version"]
    assert order == [*for_others, "half an engine in a bundle", "a damaged engine", "half an engine"]


def test_sharing_and_refusals_on_the_real_bindings(tmp_path: Path) -> None:
    """With a driver library made for the tests, whose device memory is the host's."""
    pytest.importorskip("cuda.bindings.driver")
    command = [sys.executable, "-m", "isnet_trt.kernels.compile", "--arch", "sm_89", "--only", "resize"]
    subprocess.run([*command, "--out", str(tmp_path / "89" / "19")], check=True, capture_output=True)
    script = Path(__file__).parent / "on_fake_driver.py"
    ran = fake_libcuda.run(tmp_path, script, str(tmp_path), TRITON_INTERPRET="1")
    assert (ran.returncode, ran.stdout) == (0, "as it should be\n"), explained(ran)


@pytest.mark.parametrize(("classes", "stride"), [(5, 8), (20, 4)])
def test_both_forms_of_the_small_network_agree(classes: int, stride: int) -> None:
    network = Strided(classes, stride, 3)
    batch = np.random.default_rng(1).standard_normal((2, 3, 19, 26)).astype(np.float32)
    out = torch.full(network.output_shape(batch.shape), float("nan"))
    network.compute(torch.from_numpy(batch), out)
    np.testing.assert_allclose(out.numpy(), network.run(batch), atol=1e-5)


def test_the_real_network_is_the_checkpoints() -> None:
    from isnet_trt.training.checkpoint import load_checkpoint, load_model
    from isnet_trt.training.torch_engine import TorchEngine

    checkpoint = load_checkpoint(DEMO)
    network = Torch(load_model(checkpoint), checkpoint.recipe.labels.count, 4, "float32", "cpu")
    batch = np.random.default_rng(1).standard_normal((1, 3, 40, 56)).astype(np.float32)
    expected = TorchEngine(load_model(checkpoint), "cpu").run(batch)
    np.testing.assert_allclose(network.run(batch), expected, atol=2e-3 * expected.std())
    assert network.on_device().no_graph(frozenset(), 0)
    assert network.output_shape(batch.shape) == expected.shape


def test_bundles_are_compared_with_the_cpu(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, target = bench_bundles.tiny(tmp_path / "bundle"), target_of(tmp_path)
    monkeypatch.setattr(test_gpu_bundles, "opened", lambda path, kind: Segmenter.open(path, engine="onnxruntime"))
    test_gpu_bundles.compare(record, target, folder, "onnxruntime-cuda", "fp32", "tiny", 1.5, (40, 56))
    assert [row["equal %"] for row in record.rows] == [100, 100]
    assert not record.wrong
    other = bench_bundles.tiny(tmp_path / "other", gain=-1)
    monkeypatch.setattr(test_gpu_bundles, "opened", lambda path, kind: Segmenter.open(other, engine="onnxruntime"))
    test_gpu_bundles.compare(record, target, folder, "onnxruntime-cuda", "fp32", "tiny", 1.5, (40, 56))
    assert any("of the labels are the CPU's" in text for text in record.wrong)


@without_gpu
def test_no_bundle_is_built_for_an_engine_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isnet_trt.export.build", lambda *arguments, **options: pytest.fail("it was built"))
    target, name = target_of(tmp_path), "isnet_resnet50os8_ade20k"
    for kind in ("tensorrt", "onnxruntime-cuda"):
        with pytest.raises((CannotRun, EngineUnavailable), match=r"tensorrt|no CUDA provider"):
            test_gpu_bundles.published(target, kind, name, "fp16", (64, 64))
    monkeypatch.setattr(test_gpu_bundles, "find_gpu", lambda: Gpu("some Hopper", "9.0", "CUDA 13.0"))
    library = type("Library", (), {"__version__": "1.7.1.116"})()
    monkeypatch.setattr("isnet_trt.engines.library.Library.load", lambda self: library)
    with pytest.raises(CannotRun, match=r"8\.9.*; this GPU has 9\.0"):
        test_gpu_bundles.published(target, "tensorrt-rtx", name, "fp16", (64, 64))


def test_a_bundle_that_breaks_is_wrong_and_one_that_cannot_be_is_no_failure(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(ckpt: Path, folder: Path, kind: str, precision: str, calib: Path | None, context: str | None) -> float:
        if precision == "fp32":
            raise RuntimeError("the library threw")
        if precision == "fp8":
            raise SettingsError("precision fp8 needs compute capability 8.9")
        assert (calib is not None) == (precision == "int8")
        assert calib is None or len(list(calib.glob("*.png"))) == 8
        return 1.5

    compared = []
    monkeypatch.setattr(test_gpu_bundles, "build", build)
    monkeypatch.setattr(test_gpu_bundles, "require", lambda kind: None)
    monkeypatch.setattr(test_gpu_bundles, "compare", lambda *arguments: compared.append(arguments[5:]))
    for precision in ("int8", "fp16"):
        test_gpu_bundles.test_bundles(record, target_of(tmp_path), "tensorrt", precision, "plugin")
    assert compared == [("demo tensorrt int8 plugin", 1.5), ("demo tensorrt fp16 plugin", 1.5)]
    for precision, error in (("fp32", RuntimeError), ("fp8", CannotRun)):
        with pytest.raises(error):
            test_gpu_bundles.test_bundles(record, target_of(tmp_path), "tensorrt", precision, "plugin")


def test_two_segmenters_that_disturb_each_other_are_found(record: Record, tmp_path: Path) -> None:
    def pair() -> list[Segmenter]:
        return [host(Strided(5, 8, seed), SMALL) for seed in (1, 2)]

    test_gpu_bundles.two_at_once(record, pair(), target_of(tmp_path), calls=2)
    assert not record.wrong
    assert [row["least equal %"] for row in record.rows] == [100, 100]
    good, other = pair()
    first = good.runtime.engine.run
    calls = iter(range(100))
    good.runtime.engine.run = lambda batch: first(batch if next(calls) == 0 else -batch)
    test_gpu_bundles.two_at_once(record, [good, other], target_of(tmp_path), calls=2)
    assert record.wrong == ["segmenter 0 gives other labels beside another one than alone"]


@pytest.mark.slow
def test_a_bundle_is_held_to_the_stored_outputs(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same code, with the bundle's graph under ONNX Runtime on the CPU."""
    monkeypatch.setattr(test_gpu_bundles, "require", lambda kind: None)
    name = "isnet_resnet50os8_lip"
    folder, seconds = test_gpu_bundles.published(target_of(tmp_path), "onnxruntime-cuda", name, "fp32", None)
    with Segmenter.open(folder, engine="onnxruntime") as segmenter:
        test_gpu_bundles.compare_stored(record, segmenter, name, "onnxruntime fp32", "fp32", seconds)
        assert not record.wrong
        assert {row["compared"] for row in record.rows} >= {"logits max", "logits argmax"}
        segmenter.engine.run = lambda batch: np.zeros((1, 20, 31, 42), np.float32)  # type: ignore[method-assign]
        test_gpu_bundles.compare_stored(record, segmenter, name, "another network", "fp32")
    assert any(text.startswith("another network: logits max") for text in record.wrong)


def test_stored_labels_are_compared_quickly_too() -> None:
    from isnet_trt.recipes import RECIPES

    compared = []
    for name in test_gpu_runtime.QUICK:
        stored = np.load(test_gpu_runtime.GOLDEN / f"golden_isnet_{name}.npz")
        ways = test_gpu_runtime.ways(RECIPES[f"isnet_{name}"], stored, tuple(map(int, stored["image_hw"])), True)
        compared += [label for label, _, labels in ways if labels is not None]
    assert compared == ["stored slide", "stored msflip"]
