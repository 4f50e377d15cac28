"""The build command: a checkpoint in, a whole bundle out, or nothing."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import signal
from pathlib import Path

import golden_model
import numpy as np
import pytest
import torch
from children import PATIENCE, start_python, wait_until
from marks import builds_rtx, needs_rtx, no_tensorrt
from own_pictures import write_pngs
from small_bundle import write_bundle

from isnet_trt import Segmenter, cli
from isnet_trt import build as command
from isnet_trt.bundle import read_bundle
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.select import choose
from isnet_trt.errors import BuildError, CheckpointError, EngineUnavailable
from isnet_trt.evaluation.labelled import DrawnScenes
from isnet_trt.export import EngineOptions, EvidenceOptions, PrecisionOptions, build, stages
from isnet_trt.export.sources.checkpoint import network_of
from isnet_trt.recipes import recipe
from isnet_trt.training import DEMO_CHECKPOINT
from isnet_trt.training.checkpoint import load_checkpoint
from isnet_trt.training.model import ISNet
from isnet_trt.training.scenes import draw_scene

pytestmark = pytest.mark.usefixtures("traced_once")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("checkpoint") / "demo.pth"
    torch.save({"model": ISNet(recipe("isnet_demo").architecture).state_dict()}, path)
    return path


def run(*arguments: object) -> int:
    return cli.run(command.main, [str(argument) for argument in arguments])


def test_command_builds_a_bundle(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "deep" / "my bundle"
    assert run("--ckpt", checkpoint, "--engine", "onnxruntime", "--out", place) == 0
    message = capsys.readouterr().out
    assert "isnet_demo" in message
    assert f"isnet_trt.predict {shlex.quote(str(place))} IMAGE" in message
    assert f"proof       {place / 'precision.html'}\n" in message
    bundle = read_bundle(place)
    files = {name for name in bundle.manifest.files if not name.startswith("precision/")}
    assert files == {"model.onnx", "precision.html", "precision.md", "precision.png"}
    assert bundle.manifest.checkpoint.name == "demo.pth"
    assert len(bundle.manifest.parity["pictures"]) == 4
    with Segmenter.open(bundle.folder, preset="ms-flip", threads=2) as segmenter:
        labels = segmenter(np.random.default_rng(0).integers(0, 255, (67, 91, 3), np.uint8)).labels
    assert labels.shape == (67, 91)


@builds_rtx
def test_tensorrt_rtx_bundle(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--engine", "tensorrt-rtx", "--static", 97, 129, "--targets", 8.6, "--workspace", 0.5)
    assert run("--ckpt", checkpoint, *options, "--out", tmp_path / "bundle") == 0
    bundle = read_bundle(tmp_path / "bundle")
    engine = bundle.manifest.engine
    assert (engine.kind, engine.file) == ("tensorrt-rtx", "model.engine")
    assert (engine.context, engine.version_compatible) == ("plugin", False)
    assert engine.shapes == ((1, 3, 97, 129),) * 3
    assert engine.compute_capabilities == ("8.6",)
    files = {name for name in bundle.manifest.files if not name.startswith(("kernels/", "precision/"))}
    assert files == {"model.onnx", "model.engine", "precision.html", "precision.md", "precision.png"}
    assert_kernels(bundle.folder / "kernels", {"attention_fp32_w32", "pool_fp32_fp32"})
    assert "kernels" in capsys.readouterr().out
    if choose().kind == "onnxruntime":  # no GPU: never silently on another engine
        with pytest.raises(EngineUnavailable, match="engine='onnxruntime'"):
            Segmenter.open(bundle.folder)
    with Segmenter.open(bundle.folder, engine="onnxruntime") as segmenter:
        assert segmenter(np.zeros((31, 45, 3), np.uint8)).labels.shape == (31, 45)


def assert_kernels(folder: Path, plugins: set[str]) -> None:
    """For sm_80, which later GPUs run too, and sm_86: what the runtime needs and the engine's plugins, no more."""
    assert {path.name for path in folder.iterdir()} == {"sm_80", "sm_86"}
    for place in folder.iterdir():
        names = set(json.loads((place / "launch.json").read_text("utf-8"))["kernels"])
        merging = {"accumulate_fp32_k9", "finish_fp32_u8_rows4", "finish_fp32_u8", "upsample_argmax_fp32_u8_rows8"}
        assert {"resize", "gather_fp32", "finite_fp32"} | merging <= names
        assert {name for name in names if name.startswith(("att", "pool"))} >= plugins
        assert not [name for name in names if "fp16" in name or (not plugins and "attention" in name)]


@pytest.mark.slow
@builds_rtx
def test_native_context(checkpoint: Path, tmp_path: Path) -> None:
    engine = EngineOptions("tensorrt-rtx", context="native", static=(97, 129), targets=("8.6",))
    bundle = build(checkpoint, tmp_path / "bundle", engine=engine)
    assert bundle.manifest.engine.context == "native"
    assert_kernels(bundle.folder / "kernels", set())


@pytest.mark.slow
def test_kernels_for_onnx_runtime_where_they_are_asked_for(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isnet_trt.export.bundle_kernels.KERNEL_TARGETS", {80: None, 86: None})  # all six take a minute
    bundle = build(checkpoint, tmp_path / "bundle", engine=EngineOptions("onnxruntime", kernels=True))
    assert bundle.manifest.engine.context is None
    assert_kernels(bundle.folder / "kernels", set())
    with Segmenter.open(bundle.folder) as segmenter:
        assert segmenter(np.zeros((31, 45, 3), np.uint8)).labels.shape == (31, 45)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--engine", "onnxruntime", "--context", "plugin"), "--context is for TensorRT and TensorRT-RTX; "),
        (("--engine", "onnxruntime", "--targets", "8.6"), "--targets is for TensorRT-RTX; onnxruntime has"),
        pytest.param(
            ("--engine", "tensorrt-rtx", "--version-compatible"), "TensorRT-RTX has no lean runtime", marks=needs_rtx
        ),
        pytest.param(
            ("--engine", "tensorrt-rtx", "--hardware-compatible"), "runs on all of its --targets", marks=needs_rtx
        ),
        pytest.param(
            ("--engine", "tensorrt-rtx", "--timing-cache", "x"), "TensorRT-RTX has no timing cache", marks=needs_rtx
        ),
        pytest.param(("--engine", "tensorrt-rtx", "--workspace", "-1"), "--workspace -1", marks=needs_rtx),
    ],
)  # fmt: skip
def test_engine_options_that_cannot_be_had(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert run("--ckpt", checkpoint, *options, "--out", tmp_path / "bundle") == cli.ERROR
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@no_tensorrt
def test_tensorrt_missing_says_what_to_install(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--ckpt", checkpoint, "--engine", "tensorrt", "--out", tmp_path / "bundle") == cli.ERROR
    assert "pip install '.[gpu]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_checkpoint_of_other_classes(tmp_path: Path) -> None:
    torch.save({"model": golden_model.weights("isnet_resnet50os8_lip")}, tmp_path / "lip.pth")
    with pytest.raises(CheckpointError, match="isnet_resnet50os8_lip"):
        build(tmp_path / "lip.pth", tmp_path / "bundle", recipe="isnet_resnet50os8_ade20k")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lip.pth"]


def test_what_is_at_the_target_stays(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bundle without --force, and a folder that is no bundle in any case."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    assert run("--ckpt", checkpoint, "--out", tmp_path / "notes", "--force") == cli.ERROR
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "years of work"
    capsys.readouterr()
    manifest = write_bundle(tmp_path / "bundle").folder / "bundle.json"
    before = manifest.read_bytes()
    assert run("--ckpt", checkpoint, "--out", tmp_path / "bundle") == cli.ERROR
    assert "--force" in capsys.readouterr().err
    assert manifest.read_bytes() == before


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pngs(tmp_path_factory.mktemp("street"), [draw_scene(seed, 96, 160).image for seed in range(3)])


def test_int8_for_the_cpu(street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo model in uint8, scored on a drawn scene; the second build takes the calibration again."""
    words = ["--ckpt", DEMO_CHECKPOINT, "--engine", "onnxruntime", "--precision", "int8", "--calib", street]
    assert run(*words, "--calib-inputs", 3, "--gate-inputs", 1, "--out", tmp_path / "bundle") == 0
    assert "calibration" in capsys.readouterr().out
    table = tmp_path / "bundle.calibration" / "calibration.json"
    first = table.stat().st_mtime_ns
    precision = PrecisionOptions("int8", calib=street, calib_inputs=3)
    evidence = EvidenceOptions(score_on=DrawnScenes(1, (192, 320)), gate_inputs=1)
    options = {"engine": EngineOptions("onnxruntime"), "precision": precision, "evidence": evidence}
    bundle = build(DEMO_CHECKPOINT, tmp_path / "bundle", **options, force=True)
    assert table.stat().st_mtime_ns == first
    assert bundle.manifest.precision == "int8"
    assert bundle.manifest.files["model.onnx"].bytes < 0.4 * 4_350_000  # float32 weights take 4.35 MB
    report = bundle.manifest.parity
    assert report["agreement"] > 0.97
    assert report["graph"]["calibration inputs"] == 3
    assert abs(report["scores"]["drop_points"]) < 5
    assert "mIoU on 1 pictures of scenes" in (bundle.folder / "precision.md").read_text("utf-8")
    with Segmenter.open(bundle.folder, threads=2) as segmenter:
        assert segmenter(np.zeros((67, 91, 3), np.uint8)).labels.shape == (67, 91)


def test_interrupt_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    """Several tries: a signal that arrives inside a library's clean-up is lost there, and the build ends well."""
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        status, errors = interrupted_build(checkpoint, folder)
        if status != 0:
            break
    assert status == cli.INTERRUPTED, errors
    assert list(folder.iterdir()) == []


def interrupted_build(checkpoint: Path, folder: Path) -> tuple[int, str]:
    command = ("-m", "isnet_trt.build", "--ckpt", checkpoint, "--out", folder / "bundle", "--engine", "onnxruntime")
    process = start_python(*command)
    # The temporary folder: the export has begun. A build that ends before anybody has looked counts as a lost signal.
    wait_until(lambda: process.poll() is not None or bool(list(folder.glob(".bundle*"))))
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=PATIENCE)[1]
    return process.returncode, errors


def test_what_is_left_out_and_what_has_no_meaning_is_said(
    street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is exported, which this test leaves out."""

    def stop(*words: object) -> None:
        raise BuildError("the end of this test")

    monkeypatch.setattr("isnet_trt.export.sources.checkpoint.export_graph", stop)
    shutil.copytree(street, tmp_path / "street")
    (tmp_path / "street" / "0.jpg").write_bytes(b"a text")
    messages: list[str] = []
    engine = EngineOptions("onnxruntime", static=(65, 97))
    precision = PrecisionOptions("fp16", calib=tmp_path / "street")
    with pytest.raises(BuildError, match="the end of this test"):
        build(DEMO_CHECKPOINT, tmp_path / "bundle", engine=engine, precision=precision, say=messages.append)
    assert any("left out: " in line and "0.jpg" in line for line in messages)
    assert any("--static and --batch have no meaning" in line for line in messages)
    assert not (tmp_path / "bundle").exists()


def test_names_of_checkpoints_that_are_no_unicode() -> None:
    """A manifest is UTF-8; that of a Latin-1 system's file was refused once everything was built."""
    renamed = dataclasses.replace(load_checkpoint(DEMO_CHECKPOINT), path=Path("caf\udce9.pth"))
    manifest = stages.new_manifest(network_of(renamed), "fp32", EngineInfo("onnxruntime", "1", "model.onnx"), {})
    assert json.dumps(manifest.to_json(), ensure_ascii=False).encode()
    assert manifest.checkpoint.name == r"caf\xe9.pth"
