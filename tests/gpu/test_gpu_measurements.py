"""The measurements on a GPU (`benchmarks.gpu_stages`, `tests.gpu.test_gpu_models`), run on the CPU: what they judge."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu_stages, gpu_timing, kernels, results
from benchmarks.kernel_cost import Card
from isnet_trt import Segmenter
from isnet_trt.bundle import ENGINE, ONNX
from isnet_trt.errors import EngineUnavailable, SettingsError
from tests.benchmarks import bench_bundles
from tests.gpu import test_gpu_models
from tests.gpu.comparison import host, on_gpu, recipe_case
from tests.gpu.host import SMALL, target_of, use_cpu
from tests.gpu.networks import Strided
from tests.gpu.record import CannotRun, Record

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="as the tests on a GPU, for Linux")
# Asking the driver here would spoil the tests on the GPU, whose processes are forked from this one.
without_gpu = pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is an NVIDIA driver")


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path / "record.jsonl")


def test_floors_and_plans_of_the_models() -> None:
    """Needs no GPU: what each stage must move, how often the network runs, and that scores stay in their bands."""
    from isnet_trt.cuda.plan import BAND_BYTES, plan

    whole, slide = (recipe_case(*gpu_stages.MODELS[name]) for name in ("ADE", "Cityscapes"))
    floors = gpu_stages.floors(whole)
    assert set(floors) == {"resize", "gather", "finite", "finish"}
    assert floors["resize"].bytes == 3 * (480 * 640 + 512 * 683)
    assert floors["finish"].bytes == 4 * 150 * 64 * 86 + 480 * 640
    assert set(gpu_stages.floors(slide)) == {"gather", "finite", "accumulate", "finish"}
    assert gpu_stages.floors(slide)["accumulate"].bytes > 1.4e9
    for case, runs_of_the_network in ((whole, 1), (slide, 33)):
        planned = plan(case.size, case.inference, case.model)
        steps = [step for step in planned.steps if step.stage == "engine" and hasattr(step, "shape")]
        assert len(steps) == runs_of_the_network
        assert planned.buffers.get("volumes", 0) <= BAND_BYTES


def test_stages_and_the_whole_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cpu(monkeypatch)
    bench = gpu_stages.Bench(target_of(tmp_path), True, Card("this card", 1e12, 1e9, 1e8), {})
    rows = list(gpu_stages.stage_times(bench, "small", SMALL))
    assert {row["stage"] for row in rows} == {"gather", "finite", "finish"}
    assert all(row["floor µs"] > 0 for row in rows)
    network = Strided(5, 8, 3)
    network.logits = lambda batch: batch  # type: ignore[attr-defined]
    (row,) = gpu_stages.beside_network(bench, SMALL, network)
    assert row["call ms"] > row["all other stages ms"] > row["network ms"]
    assert "the aim is 15 %" in bench.missed[0]  # interpreted kernels take long


def test_a_bundles_engine_stages_and_calls_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cpu(monkeypatch)
    target = target_of(tmp_path)
    opened = on_gpu(target, Strided(5, 8, 3), SMALL)
    monkeypatch.setattr(Segmenter, "open", lambda folder, device: opened)
    bench = gpu_stages.Bench(target, True, Card("this card", 1e12, 1e9, 1e8), {})
    (row,) = gpu_stages.bundle(bench, tmp_path)
    assert row["preset"] == "default"
    assert row["call ms"] > row["network ms"] > 0
    monkeypatch.setattr(Segmenter, "open", lambda folder, device: host(Strided(5, 8, 3), SMALL))
    with pytest.raises(EngineUnavailable):
        list(gpu_stages.bundle(bench, tmp_path))


def test_contenders_with_other_logits_are_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cpu(monkeypatch)
    bench = gpu_stages.Bench(target_of(tmp_path), True, Card("this card", 1e12, 1e9, 1e8), {})
    batch = torch.randn(1, 5, 4, 4)
    contenders = {"eager": lambda x: x, "rounded": lambda x: x.half().float(), "other": lambda x: -x}
    rows = list(gpu_stages.network_times(bench, contenders, batch))
    assert [row["network"] for row in rows] == ["eager", "rounded", "PyTorch, CUDA graph"]
    assert rows[0]["times as fast as eager"] == 1
    assert [text.split(":")[0] for text in bench.missed] == ["other"]


def test_rates_are_measured_and_a_time_is_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    use_cpu(monkeypatch)
    rates = gpu_stages.measure_rates(True, "cpu", (64, 32))
    assert {"matrix fp16", "matrix bf16", "matrix fp32", "matrix int8", "matrix fp8", "copy"} <= set(rates)
    assert rates["copy"] > 0
    spread = gpu_timing.seconds(lambda _: sum(range(20_000)), rounds=5, captured=False)
    assert 1e-5 < spread.p50 < 0.1
    assert gpu_timing.sets(1 << 20, 1 << 22) == 8
    assert gpu_timing.sets(1 << 30, 1 << 22) == 1


def test_an_idle_card_is_warmed_up_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    use_cpu(monkeypatch)
    monkeypatch.setattr(gpu_timing, "WARM_SECONDS", 0.05)
    calls, timed = [], []
    # Each call takes a millisecond of this clock.
    monkeypatch.setattr(gpu_timing, "time", SimpleNamespace(perf_counter=lambda: len(calls) / 1e3))
    event = torch.cuda.Event
    monkeypatch.setattr(torch.cuda, "Event", lambda **options: timed.append(len(calls)) or event(**options))
    gpu_timing.seconds(lambda number: calls.append(number), rounds=2, captured=False)
    assert timed[0] == 50


class Card30:
    """Clocks of a host that takes 30 µs for a launch, and of a GPU that takes 5 µs to do it."""

    stream, device = 0, contextlib.nullcontext()

    def __init__(self) -> None:
        self.host = self.gpu = 0.0

    def work(self, seconds: float = 5e-6) -> None:
        self.host += 30e-6
        self.gpu = max(self.gpu, self.host) + seconds

    def steps(self, size: Any, inference: Any) -> Any:
        yield from [("gather", self.work)] * 3 + [("finish", self.work)]

    def __call__(self, image: Any, inference: Any) -> None:
        self.work()


def test_stages_are_timed_without_what_python_takes_to_launch_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cpu(monkeypatch)
    card = Card30()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = 0.0

        def record(self, stream: Any) -> None:
            self.at = max(card.gpu, card.host)

        def elapsed_time(self, other: Any) -> float:
            return 1e3 * (other.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: card.work(cycles / 1.7e9))
    bench = gpu_stages.Bench(target_of(tmp_path), True, Card("this card", 1e12, 1e9, 1e8), {})
    times = gpu_stages.staged(card, SMALL, bench)
    assert times["gather"].p50 == pytest.approx(15e-6, rel=1e-3)
    assert times["finish"].p50 == pytest.approx(5e-6, rel=1e-3)


def test_records_go_into_a_result_beside_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    kernels.write(out, [kernels.record(case, "a title", 1.0) for case in ("speed.one", "speed.two")])
    bench = gpu_stages.Bench(None, True, Card("this card", 1e12, 1e9, 1e8), {})

    def failing(bench: gpu_stages.Bench) -> Any:
        yield {"µs": 1.5}
        raise RuntimeError("no such kernel")

    def slow(bench: gpu_stages.Bench) -> Any:
        bench.missed.append("40 % of the rate, aim 50 %")
        yield {"µs": 1.5}

    kernels.write(out, [kernels.measure("speed.two", slow, bench), kernels.measure("speed.three", failing, bench)])
    rows = {row["case"]: (row["status"], row["why"]) for row in results.read(out)["records"]}
    assert rows == {
        "speed.one": ("passed", ""), "speed.two": ("failed", "40 % of the rate, aim 50 %"),
        "speed.three": ("failed", "RuntimeError: no such kernel"),
    }  # fmt: skip
    assert "µs 1.5" in capsys.readouterr().out
    with pytest.raises(SettingsError, match=r"--only nonsense: no name holds it; there are speed\.attention"):
        kernels.main(["--only", "nonsense"])


@without_gpu
def test_without_a_gpu_nothing_is_timed_and_the_reason_is_named() -> None:
    with pytest.raises(EngineUnavailable, match="timed on an NVIDIA GPU: no NVIDIA driver"):
        kernels.main(["--quick", "--only", "finite"])


def test_a_providers_session_runs_where_its_input_lies(tmp_path: Path) -> None:
    folder = bench_bundles.tiny(tmp_path / "bundle")
    batch = torch.randn(1, 3, 40, 56)
    assert test_gpu_models.bound(folder / ONNX, "CPUExecutionProvider", {}, batch)() is None
    with pytest.raises(CannotRun, match="has no NoExecutionProvider"):
        test_gpu_models.bound(folder / ONNX, "NoExecutionProvider", {}, batch)


def test_a_models_calls_and_layers_are_recorded(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The texts of the inspector lie in the working folder; a part that fails leaves the other."""
    use_cpu(monkeypatch)
    target, text, layers = target_of(tmp_path), '{"Layers": []}', {f"layer {i}": 30.0 - i for i in range(30)}
    monkeypatch.setattr(test_gpu_models, "published", lambda *arguments: (tmp_path, 12.5))
    monkeypatch.setattr(test_gpu_models, "recipe_case", lambda *names: SMALL)
    monkeypatch.setattr(Segmenter, "open", lambda folder, device: on_gpu(target, Strided(5, 8, 3), SMALL))
    monkeypatch.setattr(test_gpu_models.engines, "load", lambda kind: SimpleNamespace(__version__="10.6.0"))
    monkeypatch.setattr(test_gpu_models.plugins, "kernels_for", lambda *arguments: contextlib.nullcontext())
    loaded = SimpleNamespace(
        bind=lambda batch: None, microseconds=lambda: 1500.0, replays_equal=lambda: True, layers=lambda: text,
        layer_times=lambda: layers,
    )  # fmt: skip
    monkeypatch.setattr(test_gpu_models.engines, "Loaded", lambda library, content: loaded)
    test_gpu_models.test_model(record, target, "ADE", "fp16")
    assert record.wrong[0].startswith("engine alone: FileNotFoundError")
    (tmp_path / ENGINE).write_bytes(b"engine")
    test_gpu_models.test_model(record, target, "ADE", "fp16")
    assert record.figures["engine alone ms"] == 1.5
    assert record.figures["aim ms"] == 1.6
    assert record.rows[0]["call ms"] > 0
    assert sum("layer" in row and "µs" in row for row in record.rows) == test_gpu_models.LONGEST
    assert Path(record.figures["inspector"]).read_text("utf-8") == text
    (times,) = tmp_path.glob("inspector/*_times.csv")
    assert len(times.read_text("utf-8").splitlines()) == 30
