"""Calibration folders, pictures, checkpoints and targets that are not as they should be, through the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from children import PATIENCE, start_python
from marks import needs_rtx
from own_pictures import write_pngs
from permissions import as_nobody, reachable

from isnet_trt import Segmenter, cli
from isnet_trt import build as command
from isnet_trt.bundle import read_bundle
from isnet_trt.export.quantise import Table
from isnet_trt.export.quantise.calibration import SAVE_EVERY
from isnet_trt.training import DEMO_CHECKPOINT

pytestmark = pytest.mark.usefixtures("traced_once")
CPU = ("--engine", "onnxruntime")
RTX = ("--engine", "tensorrt-rtx")


def arguments(out: Path, *more: object, ckpt: Path = DEMO_CHECKPOINT) -> list[str]:
    return [str(argument) for argument in ("--ckpt", ckpt, "--out", out, *more)]


def refused(capsys: pytest.CaptureFixture[str], out: Path, *more: object, ckpt: Path = DEMO_CHECKPOINT) -> str:
    """What the command says when it refuses; nothing is left at ``out``."""
    assert cli.run(command.main, arguments(out, *more, ckpt=ckpt)) == cli.ERROR
    assert not out.exists()
    return capsys.readouterr().err


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (64, 96, 3), np.uint8)


def altered(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """The demo model's checkpoint with other weights."""
    content = torch.load(DEMO_CHECKPOINT, weights_only=True)
    change(content["model"])
    torch.save(content, path)
    return path


def test_unknown_layers_are_refused_before_the_calibration(
    graph: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isnet_trt.export.sources.checkpoint.export_graph", lambda *arguments: graph)
    street = write_pngs(tmp_path / "street", [noise(0)])
    options = (*CPU, "--precision", "int8", "--calib", street, "--keep", "nonsense")
    output = refused(capsys, tmp_path / "bundle", *options)
    assert "no layer is called 'nonsense'; layers begin with backbone_net" in output
    assert [path.name for path in tmp_path.iterdir()] == ["street"]  # no table was begun


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((*CPU, "--precision", "fp8"), "no fp8 convolutions on a CPU or in its CUDA provider"),
        ((*CPU, "--precision", "int8"), "give --calib FOLDER"),
        ((*CPU, "--precision", "int8", "--calib", "nowhere"), "does not exist"),
        ((*CPU, "--score-on", "nowhere.yaml"), "nowhere.yaml"),
        pytest.param(
            (*RTX, "--precision", "fp8", "--calib", "street", "--targets", "8.6", "8.9"),
            "fp8 needs compute capability 8.9 or newer, not 8.6",
            marks=needs_rtx,
        ),
        ((*CPU, "--static", "60000", "60000"), "--static (60000, 60000) has more than"),
        ((*CPU, "--precision", "int8", "--max-drop", "-1", "--calib", "street"), "0 points or more"),
        ((*CPU, "--precision", "int8", "--max-drop", "nan", "--calib", "street"), "0 points or more"),
        ((*CPU, "--precision", "fp16", "--max-drop", "0.5"), "it is for int8 and fp8"),
        ((*CPU, "--precision", "fp16", "--keep", "bottleneck"), "keep bottleneck with fp16: it is for int8 and fp8"),
    ],
)
def test_what_cannot_be_built_is_refused_first(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, tmp_path / "bundle", *options)


def test_a_name_that_is_too_long_for_what_is_kept_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The calibration lies in ``<out>.calibration``: said before the export."""
    street = write_pngs(tmp_path / "street", [noise(0)])
    out = tmp_path / ("x" * (os.pathconf(tmp_path, "PC_NAME_MAX") - 5))
    error = refused(capsys, out, *CPU, "--precision", "int8", "--calib", street)
    assert f"--out: {out.name}.calibration is longer than a file's name can be" in error
    error = refused(capsys, tmp_path / "new" / out.name, *CPU, "--precision", "int8", "--calib", street)
    assert "longer than a file's name can be" in error


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_a_calibration_that_cannot_be_written_is_no_work_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said before the export; so are folders that may not be read."""
    ckpt = Path(shutil.copy(DEMO_CHECKPOINT, tmp_path))
    street, closed = write_pngs(tmp_path / "street", [noise(0)]), tmp_path / "closed"
    (tmp_path / "b.calibration").mkdir(mode=0o555)
    closed.mkdir(mode=0)
    options = (*CPU, "--precision", "int8", "--calib")
    for out, calib, message in (
        (tmp_path / "b", street, "b.calibration cannot be written (Permission denied)"),
        (tmp_path / "c", closed / "street", "closed/street: Permission denied"),
        (closed / "d", street, "closed/d cannot be written: Permission denied"),
    ):
        with reachable(tmp_path), as_nobody():
            assert cli.run(command.main, arguments(out, *options, calib, ckpt=ckpt)) == cli.ERROR
        captured = capsys.readouterr()
        assert message in captured.err
        assert "export" not in captured.out
    closed.chmod(0o700)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.calibration", "closed", ckpt.name, "street"]


def test_one_picture_among_unreadable_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Documented fallback: the bundle is built, and the command says what the ranges are worth."""
    folder = write_pngs(tmp_path / "street", [noise(0)])
    (folder / "01.jpg").write_bytes(b"a text")
    options = (*CPU, "--precision", "int8", "--calib", folder, "--calib-inputs", 2)
    assert cli.run(command.main, arguments(tmp_path / "bundle", *options)) == 0
    output = capsys.readouterr().out
    assert "00.png is the only picture" in output
    assert "left out:" in output
    assert "01.jpg" in output
    assert read_bundle(tmp_path / "bundle").manifest.parity["graph"]["calibration inputs"] == 2  # two windows


def kill_channels(state: dict[str, torch.Tensor]) -> None:
    """Channel 2 of one convolution without weights, and a whole convolution that is zero after its batch-norm."""
    state["backbone_net.layer2.0.conv1.weight"][2] = 0
    for part in ("weight", "bias"):
        state[f"backbone_net.layer3.1.bn1.{part}"].zero_()


def test_constant_pictures_and_dead_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ckpt = altered(tmp_path / "dead.pth", kill_channels)
    grey = write_pngs(tmp_path / "grey", [np.full((64, 96, 3), 128, np.uint8)] * 2)
    options = (*CPU, "--precision", "int8", "--calib", grey, "--calib-inputs", 2)
    assert cli.run(command.main, arguments(tmp_path / "bundle", *options, ckpt=ckpt)) == 0
    assert "always zero on these pictures" in capsys.readouterr().out
    with Segmenter.open(tmp_path / "bundle", threads=2) as segmenter:
        answer = segmenter(noise(3), probabilities=True)
    assert answer.probabilities is not None
    assert np.isfinite(answer.probabilities).all()


def test_activations_beyond_float32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def blow_up(state: dict[str, torch.Tensor]) -> None:
        for layer in ("bn1", "bn2"):
            state[f"backbone_net.layer3.0.{layer}.weight"] *= 1e30

    ckpt = altered(tmp_path / "huge.pth", blow_up)
    street = write_pngs(tmp_path / "street", [noise(0)])
    options = (*CPU, "--precision", "int8", "--calib", street, "--calib-inputs", 1)
    output = refused(capsys, tmp_path / "bundle", *options, ckpt=ckpt)
    assert "has NaN or infinite values" in output
    assert "cannot be quantised" in output


HELD_AFTER_A_SAVE = """
import sys, time
from isnet_trt import build, cli
from isnet_trt.export.quantise.table import Table
save = Table.save
def save_and_wait(table, folder):
    save(table, folder)
    print("held", flush=True)
    time.sleep(600)
Table.save = save_and_wait
sys.exit(cli.run(build.main))
"""


@pytest.mark.slow
def test_interrupted_calibration_goes_on(tmp_path: Path) -> None:
    """What the first process wrote is in the second's table: a mark put between them is still there."""
    street, limit = write_pngs(tmp_path / "street", map(noise, range(6))), 2 * SAVE_EVERY
    compared = ("--images", street / "00.png")
    options = (*CPU, "--precision", "int8", "--calib", street, "--calib-inputs", limit, *compared)
    kept = tmp_path / "bundle.calibration"
    process = start_python("-c", HELD_AFTER_A_SAVE, *arguments(tmp_path / "bundle", *options))
    assert "held\n" in iter(process.stdout.readline, ""), process.communicate()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == cli.INTERRUPTED, errors
    assert not (tmp_path / "bundle").exists()
    table = Table.load(kept)
    assert len(table.inputs) == SAVE_EVERY
    content = json.loads((kept / "calibration.json").read_text("utf-8"))
    content["tensors"]["image"]["low"] = -12345.0
    (kept / "calibration.json").write_text(json.dumps(content), "utf-8")
    assert cli.run(command.main, arguments(tmp_path / "bundle", *options)) == 0
    again = Table.load(kept)
    assert again.inputs[:SAVE_EVERY] == table.inputs
    assert len(again.inputs) == limit
    assert again.records["image"].low == -12345.0
