"""The demo command: its table and its files; the whole of it as a slow test."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from isnet_trt import Segmentation
from isnet_trt.commands import demo
from isnet_trt.metrics import Confusion
from isnet_trt.recipes import DEMO_LABELS, recipe
from isnet_trt.training import DEMO_CHECKPOINT
from isnet_trt.training.scenes import Scene, draw_scene


@pytest.fixture
def scene() -> Scene:
    return draw_scene(11, 64, 128)


def result(preset: str, scene: Scene, wrong_rows: int) -> demo.Result:
    """A result whose first rows are wrong."""
    labels = scene.labels.copy()
    labels[:wrong_rows] = (labels[:wrong_rows] + 1) % DEMO_LABELS.count
    palette = np.asarray(DEMO_LABELS.palette, np.uint8)
    segmentation = Segmentation(labels, DEMO_LABELS.names, palette, seconds={"engine": 1.25, "merge": 0.5})
    confusion = Confusion(DEMO_LABELS.count)
    confusion.add(labels, scene.labels)
    return demo.Result(preset, segmentation, confusion.metrics(), 2.0)


def test_table_has_both_presets_each_class_and_each_stage(scene: Scene) -> None:
    text = demo.table(recipe("isnet_demo"), [result("default", scene, 9), result("ms-flip", scene, 0)])
    lines = {line.split("  ")[0].strip() or line.split()[0]: line.split() for line in text.splitlines() if line}
    assert lines["mIoU %"][-1] == "100.0"
    assert 0 < float(lines["mIoU %"][-2]) < 100
    assert lines["engine"][-2:] == ["1.25", "1.25"]
    assert lines["seconds"][-1] == "2.00"
    assert all(name in lines for name in DEMO_LABELS.names)
    assert recipe("isnet_demo").ms_flip.describe() in text


def test_pictures_are_written(tmp_path: Path, scene: Scene) -> None:
    segmentation = result("ms-flip", scene, 5).segmentation
    demo.write(tmp_path, scene, segmentation)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "scene.png"))[..., ::-1], scene.image)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "truth.png"), cv2.IMREAD_UNCHANGED), scene.labels)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "labels.png"), cv2.IMREAD_UNCHANGED), segmentation.labels)
    overlay = cv2.imread(str(tmp_path / "overlay.png"))[..., ::-1]
    np.testing.assert_array_equal(overlay, segmentation.overlay(scene.image))


def test_the_committed_checkpoint_is_small() -> None:
    assert DEMO_CHECKPOINT.stat().st_size < 8_000_000


@pytest.mark.slow
def test_the_whole_chain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--out", str(tmp_path), "--engine", "onnxruntime"]) == 0
    figures = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("mIoU")]
    single, multi = (float(figure) for figure in figures[0][-2:])
    assert single > 50
    assert multi > single
    assert (tmp_path / "overlay.png").exists()
