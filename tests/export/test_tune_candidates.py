"""What a tuning varies, for each library, and what of it the real builder of TensorRT-RTX takes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from marks import builds_rtx

from isnet_trt import build as command
from isnet_trt import cli
from isnet_trt.bundle import CheckpointInfo, read_bundle
from isnet_trt.cuda.gpu import Gpu
from isnet_trt.errors import EngineUnavailable, SettingsError
from isnet_trt.export import EngineOptions, PrecisionOptions, TuneOptions, tune
from isnet_trt.export.bundle_kernels import architectures
from isnet_trt.export.engines import engine_builder, tensorrt
from isnet_trt.export.job import Job
from isnet_trt.export.lowering import Arithmetic
from isnet_trt.export.network import Network
from isnet_trt.export.samples import Samples
from isnet_trt.export.tune_candidates import Candidate, baseline, dimensions, job_of
from isnet_trt.export.tune_state import Store
from isnet_trt.export.tune_trial import TimedCall, Workshop
from isnet_trt.recipes import recipe

DEMO = recipe("isnet_demo")
NO_PART: Any = None
ADA, AMPERE = Gpu("NVIDIA Ada", "8.9", "CUDA 13.0"), Gpu("NVIDIA Ampere", "8.6", "CUDA 13.0")


def job(kind: str, calib: bool = True, precision: str = "fp32", **options: Any) -> Job:
    """The parts of a build that the candidates depend on."""
    parts: dict[str, Any] = dict.fromkeys(Job.__dataclass_fields__)
    parts |= {
        "network": Network(
            DEMO,
            "demo.pth",
            CheckpointInfo("demo.pth", "ab" * 32),
            8,
            NO_PART,
            NO_PART,
            DEMO.architecture.context_channels,
        ),
        "choice": SimpleNamespace(kind=kind),
        "builder": engine_builder(kind),
        "arithmetic": Arithmetic(precision),
        "engine": EngineOptions(kind, **options),
        "precision": PrecisionOptions(precision),
        "samples": Samples((), NO_PART, (), SimpleNamespace() if calib else None),  # type: ignore[arg-type]
        "say": lambda text: None,
        "start": 0.0,
    }
    return Job(**parts)


def test_tensorrt_varies_all_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "find_gpu", lambda index: ADA)
    assert baseline(job("tensorrt")) == Candidate("fp32", context="plugin")
    assert dimensions(job("tensorrt"), 5, True) == [
        ("precision", ("fp16", "int8", "fp8", "bf16", "fp32")),
        ("context", ("plugin", "native")),
        ("batch", (2, 4)),
        ("optimisation_level", (5, 4)),
        ("streams", (1, 4)),
    ]
    assert dict(dimensions(job("tensorrt", calib=False), 1, True))["precision"] == ("fp16", "bf16", "fp32")
    monkeypatch.setattr(tensorrt, "find_gpu", lambda index: AMPERE)
    assert "fp8" not in dict(dimensions(job("tensorrt"), 1, True))["precision"]


def test_stated_options_are_not_varied(monkeypatch: pytest.MonkeyPatch) -> None:
    stated = {"context": "native", "batch": 3, "optimisation_level": 2, "streams": 2}
    fixed = job("tensorrt", precision="fp16", **stated)
    assert baseline(fixed) == Candidate("fp16", 3, "native", 2, 2)
    assert dimensions(fixed, 8, False) == []
    assert [name for name, _ in dimensions(job("tensorrt-rtx", static=(64, 96)), 8, False)] == [
        "context",
        "optimisation_level",
        "streams",
    ]


def test_onnx_runtime_varies_precision_batch_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isnet_trt.export.tune_candidates.usable_cores", lambda: 12)
    assert baseline(job("onnxruntime")) == Candidate("fp32", threads=12)
    assert dimensions(job("onnxruntime"), 40, True) == [
        ("precision", ("int8", "fp32")),
        ("batch", (2, 4, 8, 16, 32)),
        ("threads", (6, 3, 2, 1)),
    ]


def test_a_candidate_reaches_the_builder() -> None:
    candidate = Candidate("fp16", 4, "native", 5, 1)
    of = job_of(job("tensorrt-rtx"), candidate)
    assert (of.engine.batch, of.engine.context, of.engine.optimisation_level, of.engine.streams) == (4, "native", 5, 1)
    assert of.shapes.usual[0] == of.shapes.largest[0] == 4
    assert of.arithmetic.precision == "fp16"
    assert candidate.of_build(compiles=True) == candidate
    assert Candidate("int8", 4, threads=3).of_build(compiles=False) == Candidate("int8")


def test_engines_that_do_not_run_here_are_not_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    tune.check(TuneOptions(), job("onnxruntime"))
    monkeypatch.setattr(tune, "probe_gpu", lambda: (None, "no driver"))
    with pytest.raises(EngineUnavailable, match=r"--tune times tensorrt-rtx engines on this machine.*no driver"):
        tune.check(TuneOptions(), job("tensorrt-rtx"))
    hopper = Gpu("NVIDIA Hopper", "9.0", "CUDA 13.0")
    monkeypatch.setattr(tune, "probe_gpu", lambda: (hopper, ""))
    with pytest.raises(EngineUnavailable, match="which cannot run them: tensorrt-rtx runs on compute capability"):
        tune.check(TuneOptions(), job("tensorrt-rtx"))
    with pytest.raises(SettingsError, match="'fast' is unknown; use one of default, ms-flip"):
        tune.check(TuneOptions(preset="fast"), job("onnxruntime"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accuracy": 99.5}, "tune accuracy 99.5: it must be a share"),
        ({"accuracy": float("nan")}, "tune accuracy nan"),
        ({"budget": 0.0}, "budget 0"),
        ({"size": (0, 5)}, r"--tune-size \(0, 5\) must be positive"),
        ({"size": (10**5, 10**5)}, "has more than"),
        ({"size": (5, 5), "image": "a.png"}, "given twice"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TuneOptions(**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tune", "--budget", "20"), "invalid time above 0 (such as 90s, 20m or 1h30m) value: '20'"),
        (("--tune", "--budget", "0s"), "--budget"),
        (("--tune", "--tune-accuracy", "99.5"), "invalid share (such as 99.5% or 0.995) value: '99.5'"),
        (("--tune", "--tune-size", "512"), "invalid size (such as 512x1024) value: '512'"),
        (("--tune", "--tune-size", "0x7"), "--tune-size"),
        (("--tune", "--tune-preset", "fast"), "invalid choice: 'fast'"),
        (("--budget", "5m"), "--budget is for a tuning; add --tune"),
        (("--tune-accuracy", "99%"), "--tune-accuracy is for a tuning; add --tune"),
    ],
)
def test_bad_command_lines(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = cli.run(command.main, ["--ckpt", "no.pth", "--out", "no", *arguments])
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == cli.ERROR
    assert message in capsys.readouterr().err


def test_command_line_values() -> None:
    from isnet_trt.commands.build import duration, share, size

    assert [duration(text) for text in ("90s", "20m", "1h30m", "0.5h")] == [90, 1200, 5400, 1800]
    assert [share(text) for text in ("99.5%", "0.995", "100%")] == [0.995, 0.995, 1]
    assert size("512x1024") == size("512×1024") == (512, 1024)


@pytest.mark.slow
@builds_rtx
def test_candidates_of_tensorrt_rtx_are_built(graph: onnx.ModelProto, tmp_path: Path) -> None:
    """Both context forms, a batch, a level and streams, in float16 too: by the real builder, on a CPU."""
    store = Store.open(tmp_path / "tuning", {})
    call = TimedCall(np.zeros((97, 129, 3), np.uint8), "default", "none")
    whole = dataclasses.replace(job("tensorrt-rtx", targets=("8.6",)))
    workshop = Workshop(whole, graph, store, tmp_path / "out", call)
    assert architectures(("8.6",)) == (80, 86)
    for candidate in (Candidate("fp32", 2, "plugin", 2, 1), Candidate("fp32", 2, "native", 5, 4)):
        assert not workshop.is_built(candidate)
        manifest = workshop.bundle(candidate).manifest
        assert workshop.is_built(candidate)
        assert (manifest.engine.context, manifest.engine.shapes[2][0]) == (candidate.context, 2)
        assert manifest.tuning is not None
        assert (manifest.tuning.optimisation_level, manifest.tuning.streams) == (
            candidate.optimisation_level,
            candidate.streams,
        )
        read_bundle(store.bundle(candidate))
