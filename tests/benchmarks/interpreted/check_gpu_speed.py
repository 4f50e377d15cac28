"""Timings, refusals and whole checks of kernels, run on the CPU with stand-ins: the code, not the speed, is tested."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from check_gpu_runtime import CASE, rig  # noqa: E402
from check_gpu_trials import Hosted  # noqa: E402
from gpu_check_answers import Collected  # noqa: E402
from gpu_stand_ins import use_cpu  # noqa: E402

from benchmarks.gpu_check import kernels, latency, refusals, runtime  # noqa: E402
from benchmarks.gpu_check.check import Setup  # noqa: E402
from benchmarks.gpu_check.context_trials import AttentionCase  # noqa: E402
from benchmarks.gpu_check.families import FAMILIES  # noqa: E402
from isnet_trt.cuda.pipeline import Pipeline  # noqa: E402
from isnet_trt.errors import EngineError  # noqa: E402
from isnet_trt.runtime.gpu import GpuRuntime  # noqa: E402

RATES = {"rates": {"copy": 1e12, "matrix fp16": 1e9, "matrix fp32": 1e8}, "machine": {"level-2 cache bytes": 4096}}


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    use_cpu(monkeypatch)
    monkeypatch.setattr(kernels, "forms", lambda setup: [Hosted()])
    monkeypatch.setattr(kernels, "Ahead", Hosted)
    monkeypatch.setattr("benchmarks.gpu_check.timing.LEAST_SECONDS", 0.0)
    monkeypatch.setattr("benchmarks.gpu_check.timing.ROUNDS", 2)
    monkeypatch.setattr("benchmarks.gpu_check.timing.WARM", 1)
    for module in (latency, refusals, runtime):
        monkeypatch.setattr(module, "GpuRig", lambda setup: rig())
        if hasattr(module, "ade"):
            monkeypatch.setattr(module, "ade", lambda: CASE)


def small(name: str, **changes: Any) -> Any:
    """A family with its first odd case as the one of a model."""
    family = next(family for family in FAMILIES if family.name == name)
    return dataclasses.replace(family, odd=family.odd[:1], real=family.odd[:1], dtypes=("fp32",), **changes)


def test_a_family_is_compared_at_odd_and_real_sizes() -> None:
    parts = Collected()
    kernels.right(small("finite"))(parts, Setup(seed=2))
    assert not parts.said
    assert len(parts.rows) == 2
    assert parts.figures["seed"] == 2


@pytest.mark.slow
def test_a_family_is_timed_beside_its_floor() -> None:
    parts = Collected()
    kernels.fast(small("upsample_argmax"))(parts, Setup(seed=2, quick=True, known=RATES))
    assert parts.rows[0]["floor µs"] > 0
    assert parts.rows[0]["floor reached %"] > 0
    parts = Collected()
    kernels.fast(small("upsample_argmax"))(parts, Setup(seed=2, quick=True))
    assert parts.absent == [{"what": "floors", "why": "check rates has not run"}]


def test_attention_is_held_to_its_aim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "AttentionCase", lambda label, batch, *sizes: AttentionCase(label, 1, 17, 20))
    parts = Collected()
    known = {"rates": {"matrix fp16": 1e30}}
    kernels.attention_rate(parts, Setup(seed=2, known=known))
    assert len(parts.rows) == 4
    assert len([text for text in parts.said if "aim 50 %" in text]) == 2  # where 8 windows are batched
    assert all(row["PyTorch's TFLOP/s"] > 0 for row in parts.rows)


def test_stages_are_timed_beside_their_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "case_of", lambda name: CASE)
    monkeypatch.setattr(latency, "FEW", 2)
    parts = Collected()
    latency.stages("small")(parts, Setup(seed=2, quick=True, known=RATES))
    assert {row["stage"] for row in parts.rows} == {"gather", "finite", "finish"}
    assert all(row["floor µs"] > 0 for row in parts.rows)
    assert parts.figures["all stages, seconds"] > 0


@pytest.mark.slow
def test_whole_calls_are_timed_and_what_is_added_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.gpu_check import rigs
    from benchmarks.gpu_check.networks import Strided

    monkeypatch.setattr(latency, "FEW", 2)
    network = Strided(CASE.labels.count, CASE.stride, 3)
    parts = Collected()
    with rigs.on_gpu(rig(), network, CASE) as segmenter:
        assert isinstance(segmenter.runtime, GpuRuntime)
        latency._measure(
            parts, Setup(seed=2, quick=True), CASE, "small", "a network", segmenter, segmenter.runtime.pipeline
        )
    assert parts.rows[0]["call ms"] > parts.rows[0]["engine ms"]
    assert parts.figures["small: added share"] > latency.AIM  # interpreted kernels take long
    assert "the aim is 15 %" in parts.said[0]


@pytest.mark.slow
def test_memory_is_watched_over_many_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "CALLS", 5)
    parts = Collected()
    runtime.memory(parts, Setup(seed=2))
    assert not parts.said
    free = iter([1 << 30, 1 << 29, 1 << 29, 1 << 29])
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (next(free), 1 << 31))
    parts = Collected()
    runtime.memory(parts, Setup(seed=2))
    assert any("were not given back" in text for text in parts.said)
    assert any("open it holds" in text for text in parts.said)


def test_running_out_of_memory_is_refused_in_words_and_passes() -> None:
    parts = Collected()
    refusals.memory(parts, Setup(seed=2))
    assert not parts.said
    assert "not enough GPU memory for a picture of 60000x60000" in parts.rows[0]["said"]


def test_a_refusal_that_does_not_come_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Collected()
    refusals.closed(parts, Setup(seed=2))
    assert not parts.said
    monkeypatch.setattr(Pipeline, "_active", lambda self: (_ for _ in ()).throw(EngineError("something else")))
    parts = Collected()
    with pytest.raises(EngineError):
        refusals.closed(parts, Setup(seed=2))
