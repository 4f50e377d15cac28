"""The page that a build leaves: its figures are those of the findings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np

from isnet_trt.bundle import CheckpointInfo
from isnet_trt.export.parity import TOLERANCES, BlockErrors, LogitsErrors, ParityResult
from isnet_trt.export.report import PAGE, PICTURE, Report, Scores
from isnet_trt.metrics import Confusion
from isnet_trt.settings import Labels

SOURCE = CheckpointInfo("street.pth", "0123456789abcdef" * 4)
LABELS = Labels(("road", "sky", "person"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))


def findings() -> ParityResult:
    confusion = Confusion(3)
    truth = np.repeat([0, 1, 2], 100)
    actual = truth.copy()
    actual[200:210] = 0  # a tenth of class 2 is taken for class 0
    confusion.add(actual, truth)
    edges = np.linspace(0, 1, 6)
    return ParityResult(
        "ONNX Runtime",
        TOLERANCES["int8"],
        confusion,
        [LogitsErrors("one.png", 65, 97, 0.25, 0.0125, 0.9667)],
        {name: BlockErrors(name, 0.9975, 0.0625, 1.5) for name in ("stem", "head")},
        {name: (edges, np.arange(5), np.arange(5)[::-1].copy()) for name in ("stem", "head")},
    )


def scores() -> Scores:
    right, wrong = Confusion(3), Confusion(3)
    truth = np.repeat([0, 1, 2], 100)
    right.add(truth, truth)
    wrong.add(np.where(truth == 2, 0, truth), truth)
    return Scores("3 drawings", right.metrics(), wrong.metrics(), 2 / 3)


def test_averaged_weights_are_named(tmp_path: Path) -> None:
    source = dataclasses.replace(SOURCE, weights="ema")
    Report("isnet_demo", source, "int8", "tensorrt-rtx 1.7", LABELS, findings()).write(tmp_path)
    assert f"`{SOURCE.sha256}`, averaged weights (`--weights ema`)\n" in (tmp_path / PAGE).read_text("utf-8")


def test_page_says_what_was_found(tmp_path: Path) -> None:
    about = {"islands": {"node_mean": "ReduceMean over many values"}, "casts": 3}
    built = {"bytes": 1234, "layers": {"correlation": {"int8": 41}}}
    report = Report("isnet_demo", SOURCE, "int8", "tensorrt-rtx 1.7", LABELS, findings(), about, built, scores())
    report.write(tmp_path)
    page = (tmp_path / PAGE).read_text("utf-8")
    assert page.startswith("# int8 engine of isnet_demo")
    assert f"checkpoint: street.pth, SHA-256 `{SOURCE.sha256}`" in page
    assert "equal labels: **96.667 %**" in page  # 290 of 300
    assert "checkpoint 100.00 %, engine 50.00 %: **+50.00 points lost**" in page  # IoU 0.5, 1 and 0
    assert "| stem | 0.997500 | 6.25e-02 | 1.50e+00 |" in page
    assert page.index("| person | 90.00 %") < page.index("| road | 90.91 %") < page.index("| sky | 100.00 %")
    assert "person → road (10.00 %)" in page
    assert "node_mean: ReduceMean over many values" in page
    assert "correlation: int8: 41" in page
    picture = cv2.imread(str(tmp_path / PICTURE))
    assert picture is not None
    assert (picture == (40, 39, 214)).all(2).sum() > 100  # the bars and outlines are drawn


def test_manifest_has_the_figures() -> None:
    data = Report("r", SOURCE, "int8", "e", LABELS, findings(), {"casts": 3}, {}, scores()).to_json()
    assert data["agreement"] == 290 / 300
    assert data["scores"]["drop_points"] == 50
    assert data["graph"] == {"casts": 3}
    assert "built" not in data
    assert [block["block"] for block in data["blocks"]] == ["stem", "head"]
