"""The GPU check's code run on the CPU with stand-ins: rates, engines, plugins beside bodies, networks, bundles."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_bundles
import numpy as np
import pytest
import torch
from gpu_check_answers import Collected
from gpu_stand_ins import Library, use_cpu

from benchmarks.gpu_check import bundles, context, engines, latency, machine, refusals, rtx, timing
from benchmarks.gpu_check.check import CannotRun, Setup
from benchmarks.gpu_check.networks import Strided, Torch
from isnet_trt import Segmenter
from isnet_trt.cuda.gpu import Gpu, find_gpu
from isnet_trt.engines.info import EngineInfo
from isnet_trt.errors import EngineError, SettingsError

DEMO = Path(__file__).parents[2] / "training" / "assets" / "isnet_demo.pth"


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    use_cpu(monkeypatch)
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(timing, "ROUNDS", 3)


def test_rates_are_measured_and_what_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_SHORT_SIDE", 32)
    monkeypatch.setattr(machine, "_SHORT_COPY", 1 << 16)
    parts = Collected()
    machine.rates(parts, Setup(quick=True))
    assert {"matrix fp16", "matrix bf16", "matrix fp32", "copy"} <= set(parts.figures)
    assert all(value > 0 for value in parts.figures.values())
    assert len(parts.rows) + len(parts.absent) == 7


@pytest.mark.skipif(find_gpu() is not None, reason="a GPU is here")
def test_versions_are_there_without_a_gpu() -> None:
    parts = Collected()
    with pytest.raises(CannotRun, match="NVIDIA driver"):
        machine.machine(parts, Setup())
    assert parts.figures["version numpy"] == np.__version__


def test_a_time_is_of_one_call() -> None:
    spread = timing.seconds(lambda _: sum(range(20_000)), rounds=5, captured=False)
    assert 1e-5 < spread.p50 < 0.1
    both = timing.interleaved({"short": lambda _: None, "long": lambda _: sum(range(200_000))}, rounds=4)
    assert both["long"].p50 > both["short"].p50
    assert timing.sets(1 << 20, 1 << 22) == 8
    assert timing.sets(1 << 30, 1 << 22) == 1


def test_a_card_that_had_nothing_to_do_is_warmed_up_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "WARM_SECONDS", 0.1)
    calls, timed = [], []
    plain = torch.cuda.Event
    monkeypatch.setattr(torch.cuda, "Event", lambda **options: timed.append(len(calls)) or plain(**options))
    timing.seconds(lambda number: calls.append(number) or time.sleep(0.001), rounds=2, captured=False)
    assert timed[0] > 2 * timing.WARM


class Card:
    """Clocks of a host that takes 30 µs for a launch, and of a GPU that takes 5 µs to do it."""

    def __init__(self) -> None:
        self.host = self.gpu = 0.0
        self.stream = 0

    def work(self, seconds: float = 5e-6) -> None:
        self.host += 30e-6
        self.gpu = max(self.gpu, self.host) + seconds

    def steps(self, size: Any, inference: Any) -> Iterator[tuple[str, Any]]:
        yield from [("gather", self.work)] * 3 + [("finish", self.work)]

    def __call__(self, image: Any, inference: Any) -> None:
        self.work()

    @property
    def device(self) -> Any:
        return contextlib.nullcontext()


def test_stages_are_timed_without_what_python_takes_to_launch_them(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = 0.0

        def record(self, stream: Any) -> None:
            self.at = max(card.gpu, card.host)

        def elapsed_time(self, other: Any) -> float:
            return 1e3 * (other.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: card.work(cycles / 1.7e9))
    case = latency.case_of("ADE, whole 512x683")
    found = latency.staged(card, case, Setup(seed=3), 4)
    assert found["gather"].p50 == pytest.approx(15e-6, rel=1e-3)
    assert found["finish"].p50 == pytest.approx(5e-6, rel=1e-3)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library("bf16", "fp8")
    for module in (rtx, context):
        monkeypatch.setattr(module.engines, "build", made.build)
    monkeypatch.setattr("isnet_trt.engines.library.Library.load", lambda self: made)
    return made


def test_an_engine_that_runs_and_one_that_is_refused(library: Library) -> None:
    parts = Collected()
    rtx.runs("tensorrt-rtx", "SM80")(parts, Setup(seed=3))
    assert parts.figures["ran"] == ["fp32", "fp16"]
    answers = {row["precision"]: row["answer"] for row in parts.rows}
    assert answers == {"fp32": "runs", "fp16": "runs", "bf16": "BuildFailed: no bf16 for SM80"}
    assert all(row["relative error"] < 5e-3 for row in parts.rows if row["answer"] == "runs")
    assert not parts.said


def test_an_engine_that_computes_something_else_is_found(library: Library) -> None:
    library.wrong = 0.5
    parts = Collected()
    with pytest.raises(CannotRun, match="no precision of target default runs here"):
        rtx.runs("tensorrt-rtx", "default")(parts, Setup(seed=3))
    assert len(parts.said) == 2
    assert "its result is off by" in parts.said[0]


def test_a_library_that_cannot_start_here_is_a_row_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the driver is too old for it: `Builder` throws TypeError, and the reason was logged."""

    class Refusing(Library):
        NetworkDefinitionCreationFlag = SimpleNamespace()

        def Builder(self, log: Any) -> Any:
            log.errors.append("CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr("isnet_trt.engines.library.Library.load", lambda self: Refusing())
    parts = Collected()
    with pytest.raises(CannotRun, match="no precision of target default runs here"):
        rtx.runs("tensorrt", "default")(parts, Setup(seed=3))
    assert len(parts.rows) == 3
    words = "BuildFailed: the library does not start: CUDA initialization failure with error: 35"
    assert {row["answer"] for row in parts.rows} == {words}
    assert not parts.said


def test_a_layer_that_ends_in_an_exception_costs_that_layer(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtx, "LAYERS", {"1x1": ((1, 8, 5, 6), 1, 1), "3x3": ((2, 8, 5, 7), 3, 2)})
    output = rtx._output

    def broken(loaded: Any, shape: Any, *rest: Any) -> Any:
        if shape == (1, 8, 5, 6):
            raise RuntimeError("CUDA error: invalid argument")
        return output(loaded, shape, *rest)

    monkeypatch.setattr(rtx, "_output", broken)
    library.unable = ("bf16", "fp8", "int8")
    parts = Collected()
    rtx.precisions("tensorrt")(parts, Setup(seed=3))
    assert "fp16 µs" in parts.rows[1]
    assert parts.said[0].startswith("1x1 fp16: RuntimeError: CUDA error: invalid argument")


def test_eight_bits_are_compared_layer_by_layer(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtx, "LAYERS", {"1x1": ((1, 8, 5, 6), 1, 1), "3x3": ((2, 8, 5, 7), 3, 2)})
    library.unable = ("bf16", "fp8", "int8")  # ONNX Runtime has no eight bits in float16
    parts = Collected()
    known = {"rtx.runs.SM86": {"ran": ["fp16"]}}
    rtx.precisions("tensorrt-rtx")(parts, Setup(seed=3, known=known))
    assert parts.figures["target"] == "SM86"
    assert [row["layer"] for row in parts.rows] == ["1x1", "3x3"]
    assert all(row["fp16 µs"] > 0 for row in parts.rows)
    assert {m["what"] for m in parts.absent} >= {"1x1 int8", "3x3 fp8"}


def test_a_difference_between_eight_bits_and_sixteen_is_judged() -> None:
    parts, plain = Collected(), torch.randn(2, 3)
    cells = {"fp16 µs": 10.0, "int8 µs": 5.0}
    rtx._compare_eight_bits(parts, "layer", "int8", plain * 1.01, plain, cells)
    assert cells["int8 times as fast as fp16"] == 2
    assert not parts.said
    rtx._compare_eight_bits(parts, "layer", "int8", -plain, plain, cells)
    assert "layer in int8 is off from float16" in parts.said[0]


@contextlib.contextmanager
def plugged(library: Any, kernels: Any = None, multiprocessors: int = 1) -> Iterator[Any]:
    yield SimpleNamespace(failures=[])


@pytest.fixture
def small_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the plugins without their kernels, in one type, on small pictures."""
    monkeypatch.setattr("isnet_trt.cuda.plugins.kernels_for", plugged)
    monkeypatch.setattr("isnet_trt.engines.tensorrt_rtx.TensorRTRTX.allow_plugins", lambda self, module: None)
    monkeypatch.setattr(context, "own_form", lambda setup: SimpleNamespace(kernels=lambda model: None))
    monkeypatch.setattr(context, "HEIGHT", 7)
    monkeypatch.setattr(context, "SIDE", 9)
    monkeypatch.setattr(engines, "FLOATS", {"fp32": "FLOAT"})


@pytest.mark.usefixtures("library", "small_plugins")
def test_plugins_and_bodies_are_compared_and_timed() -> None:
    parts = Collected()
    context.plugins("tensorrt")(parts, Setup(seed=4, quick=True))
    assert parts.rows[0]["difference"] == 0
    assert parts.rows[0]["replay equal"] is False
    assert parts.rows[0]["plugin µs"] > 0
    # A replay of the stand-in writes nothing: the poison must be found.
    said = "the replay of a CUDA graph gives another result than the eager run"
    assert parts.said == [f"small fp32: {said}", f"small, one picture fp32: {said}"]


@pytest.mark.usefixtures("small_plugins")
def test_a_native_form_that_does_not_build_costs_its_comparison(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TensorRT-RTX 1.7 refuses it in half precision for compute capability 8.9 and 12.0."""
    calls: list[int] = []

    def build(*arguments: Any) -> bytes:
        calls.append(1)
        if len(calls) == 1:
            raise engines.BuildFailed("Fusing attention ops must leave the graph in a well-formed state.")
        return library.build(*arguments)

    monkeypatch.setattr(context.engines, "build", build)
    monkeypatch.setattr(engines.Loaded, "replays_equal", lambda self: True)
    parts = Collected()
    context.plugins("tensorrt")(parts, Setup(seed=4, quick=True))
    assert parts.said == []
    assert [one["what"] for one in parts.absent] == ["small fp32, native form"]
    assert set(parts.rows[0]) == {"case", "precision", "replay equal", "plugin µs"}
    assert parts.rows[1]["difference"] == 0


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
    network = Torch(load_model(checkpoint), checkpoint.recipe.labels.count, 4, "float32")
    batch = np.random.default_rng(1).standard_normal((1, 3, 40, 56)).astype(np.float32)
    wanted = TorchEngine(load_model(checkpoint), "cpu").run(batch)
    np.testing.assert_allclose(network.run(batch), wanted, atol=2e-3 * wanted.std())
    out = torch.full(wanted.shape, float("nan"))
    network.compute(torch.from_numpy(batch), out)
    np.testing.assert_array_equal(out.numpy(), network.run(batch))
    assert network.on_device().no_graph(frozenset(), 0)
    assert network.output_shape(batch.shape) == wanted.shape


def test_bundles_are_compared_with_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bench_bundles.tiny(tmp_path / "bundle")
    monkeypatch.setattr(bundles, "opened", lambda path, kind: Segmenter.open(path, engine="onnxruntime"))
    parts = Collected()
    bundles.compare(parts, Setup(seed=3), folder, "onnxruntime-cuda", "fp32", "tiny", 1.5, (40, 56))
    assert [row["preset"] for row in parts.rows] == ["default", "ms-flip"]
    assert all(row["equal %"] == 100 for row in parts.rows)
    assert not parts.said
    other = bench_bundles.tiny(tmp_path / "other", gain=-1)
    monkeypatch.setattr(bundles, "opened", lambda path, kind: Segmenter.open(other, engine="onnxruntime"))
    bundles.compare(parts, Setup(seed=3), folder, "onnxruntime-cuda", "fp32", "tiny", 1.5, (40, 56))
    assert any("of the labels are the CPU's" in text for text in parts.said)


@pytest.mark.skipif(find_gpu() is not None, reason="a GPU is here")
def test_engines_that_cannot_be_had_are_named(tmp_path: Path) -> None:
    parts = Collected()
    with pytest.raises(CannotRun, match="no engine of tensorrt runs here"):
        bundles.checked("tensorrt")(parts, Setup(folder=tmp_path, quick=True))
    assert all("tensorrt" in one["what"] for one in parts.absent)
    with pytest.raises(CannotRun, match="--bundle"):
        bundles.given(parts, Setup())


def test_no_bundle_is_built_for_an_engine_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isnet_trt.export.build", lambda *arguments, **options: pytest.fail("it was built"))
    for kind in ("tensorrt", "onnxruntime-cuda"):
        with pytest.raises(CannotRun, match=r"tensorrt is not installed|no CUDA provider"):
            bundles.published(Setup(folder=tmp_path), kind, "isnet_resnet50os8_ade20k", "fp16", (64, 64))
    hopper = Gpu("some Hopper", "9.0", "CUDA 13.0")
    monkeypatch.setattr("isnet_trt.cuda.gpu.find_gpu", lambda: hopper)
    with pytest.raises(CannotRun, match=r"made for compute capability 8\.0, .*, this GPU has 9\.0"):
        bundles.published(Setup(folder=tmp_path), "tensorrt-rtx", "isnet_resnet50os8_ade20k", "fp16", (64, 64))


def test_a_bundle_that_breaks_is_wrong_and_the_next_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []

    def build(ckpt: Path, folder: Path, kind: str, precision: str, context: str | None) -> float:
        built.append((precision, context))
        if precision == "fp32":
            raise RuntimeError("the library threw")
        return 1.0

    monkeypatch.setattr(bundles, "build", build)
    monkeypatch.setattr(bundles, "compare", lambda *arguments: None)
    monkeypatch.setattr(bundles, "_published", lambda *arguments: None)
    parts = Collected()
    bundles.checked("tensorrt")(parts, Setup(folder=tmp_path))
    assert [precision for precision, _ in built] == ["fp32", "fp16", "fp16", "bf16"]
    assert len(parts.said) == 1
    assert parts.said[0].startswith("demo tensorrt fp32 plugin: RuntimeError: the library threw")


def test_what_may_end_the_process_comes_after_what_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(latency, "_torch", lambda *arguments: order.append("PyTorch"))
    monkeypatch.setattr(latency, "_engine", lambda answer, setup, case, kind: order.append(kind))
    parts = Collected()
    latency.whole("ADE, whole 512x683")(parts, Setup())
    assert order == ["PyTorch", *bundles.KINDS]
    assert parts.absent[-1]["what"] == "a bundle's engine"


def test_an_engine_is_damaged_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bench_bundles.tiny(tmp_path / "bundle")
    (folder / "model.engine").write_bytes(bytes(range(256)) * 40)
    monkeypatch.setattr(
        "isnet_trt.bundle.read_bundle", lambda path: SimpleNamespace(manifest=SimpleNamespace(engine=INFO))
    )
    asked: list[str] = []
    monkeypatch.setattr(refusals, "refused", lambda answer, what, *rest: asked.append(what))
    refusals.damaged_engine(Collected(), folder, "tensorrt")
    assert asked == ["an engine for another GPU", "half an engine in a bundle", "a damaged engine", "half an engine"]


INFO = EngineInfo("tensorrt", "10.13", "model.engine", ("9.0",))


def test_refusals_are_judged_by_type_and_words() -> None:
    parts = Collected()

    def refuse() -> None:
        raise EngineError("not enough GPU memory: 12 MiB")

    refusals.refused(parts, "a", refuse, EngineError, "memory", "MiB")
    assert not parts.said
    refusals.refused(parts, "b", refuse, EngineError, "closed")
    refusals.refused(parts, "c", refuse, SettingsError)
    refusals.refused(parts, "d", lambda: None, EngineError)
    said = " | ".join(parts.said)
    assert "b: the message lacks closed" in said
    assert "c ends in EngineError, not in SettingsError" in said
    assert "d was not refused" in said


def test_floors_of_the_cases_are_those_of_the_kernels() -> None:
    whole = latency.floors(latency.case_of("ADE, whole 512x683"))
    assert set(whole) == {"resize", "gather", "finite", "finish"}
    assert whole["resize"].bytes == 3 * (480 * 640 + 512 * 683)
    assert whole["finish"].bytes == 4 * 150 * 64 * 86 + 480 * 640
    slide = latency.floors(latency.case_of("Cityscapes, 1024x2048, ms+flip"))
    assert set(slide) == {"gather", "finite", "accumulate", "finish"}
    assert slide["accumulate"].bytes > 1.4e9


def test_plans_are_made_without_a_gpu() -> None:
    parts = Collected()
    latency.plans(parts, Setup())
    assert not parts.said
    assert [row["engine_runs"] for row in parts.rows] == [1, 33]


def test_contenders_must_compute_the_same() -> None:
    parts, wanted = Collected(), torch.randn(1, 5, 4, 4)
    latency._near(parts, "same", wanted.half(), wanted)
    assert not parts.said
    latency._near(parts, "other", -wanted, wanted)
    assert "other: " in parts.said[0]
    scores = torch.eye(5).repeat(20, 1).T[None, :, None]  # 100 positions, each class in turn
    for swapped, wrong in ((6, 0), (15, 1)):
        rounded = scores.clone()
        rounded[..., :swapped] = rounded[..., :swapped].roll(1, 1)
        parts = Collected()
        latency._near(parts, "rounded", rounded, scores)
        assert len(parts.said) == wrong


def test_peers_are_timed_on_the_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from isnet_trt.training.checkpoint import load_checkpoint, load_model

    monkeypatch.setattr(latency, "MODELS", {"demo": ("isnet_demo", "default", (40, 56), 1)})
    monkeypatch.setattr(latency, "_model", lambda case: load_model(load_checkpoint(DEMO)))
    monkeypatch.setattr(latency, "FEW", 2)
    monkeypatch.setattr(latency, "test_size", lambda size, preprocess: size)
    monkeypatch.setattr(bundles, "published", lambda *arguments: (_ for _ in ()).throw(CannotRun("not here")))
    parts = Collected()
    latency.peers("demo")(parts, Setup(folder=tmp_path, quick=True, seed=3))
    assert parts.rows[0]["network"] == "PyTorch eager fp16"
    assert parts.rows[0]["times as fast as eager"] == 1
    assert {one["what"] for one in parts.absent} >= {"torch.compile", "demo tensorrt"}


@pytest.mark.slow
def test_a_bundle_is_held_to_the_stored_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same code, with the bundle's graph under ONNX Runtime on the CPU."""
    monkeypatch.undo()  # the exporter would believe in a GPU
    monkeypatch.setattr(bundles, "require", lambda kind: None)
    name = "isnet_resnet50os8_lip"
    folder, seconds = bundles.published(Setup(folder=tmp_path), "onnxruntime-cuda", name, "fp32", None)
    parts = Collected()
    with Segmenter.open(folder, engine="onnxruntime") as segmenter:
        bundles.judge_stored(parts, segmenter, name, "onnxruntime fp32", "fp32", seconds)
        assert not parts.said
        assert {row["compared"] for row in parts.rows} >= {"logits max", "logits argmax"}
        segmenter.engine.run = lambda batch: np.zeros((1, 20, 31, 42), np.float32)  # type: ignore[method-assign]
        bundles.judge_stored(parts, segmenter, name, "another network", "fp32")
    assert any(text.startswith("another network: logits max") for text in parts.said)
