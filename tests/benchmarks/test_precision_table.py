"""The precision table: which rows there are, what they say, and that a second run takes what the first computed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny_model import write_model

from benchmarks import precision, results, sections
from benchmarks.synthetic import scene_files
from isnet_trt.errors import SettingsError
from isnet_trt.export.lowering import Arithmetic
from isnet_trt.export.quantise import MeanIoU
from isnet_trt.export.quantise.sensitivity import BlockSensitivity, Mix, Step
from isnet_trt.pictures.files import read_image
from isnet_trt.recipes import PRESETS, recipe
from isnet_trt.training.scenes import draw_scene

LIP = recipe("isnet_resnet50os8_lip")


def scorer(count: int) -> MeanIoU:
    scenes = [draw_scene(seed, 48, 80) for seed in range(count)]
    return MeanIoU(
        LIP, [(scene.image, scene.labels) for scene in scenes], LIP.default, LIP.architecture.output_stride, threads=1
    )


def test_label_maps_are_kept_and_extended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stride = LIP.architecture.output_stride
    proto = onnx.load(write_model(tmp_path / "model.onnx", LIP.labels.count, stride=stride))
    judge = precision.Judge({"default": scorer(2)}, tmp_path)
    first = judge.labels(proto, "default")
    wanted = list(scorer(3).labels(proto))
    assert all(np.array_equal(one, other) for one, other in zip(first, wanted, strict=False))
    assert len({one.tobytes() for one in wanted}) == 3
    assert judge(proto) == pytest.approx(judge.scores["default"](proto))
    asked: list[list[int]] = []
    more = scorer(3)
    computed = more.labels
    monkeypatch.setattr(more, "labels", lambda proto, indices: asked.append(indices) or computed(proto, indices))
    again = precision.Judge({"default": more}, tmp_path).labels(proto, "default")
    assert asked == [[2]]
    assert all(np.array_equal(one, other) for one, other in zip(again, wanted, strict=True))
    other = onnx.load(write_model(tmp_path / "other.onnx", LIP.labels.count, gain=-1.0, stride=stride))
    assert judge(other) != judge(proto)  # another graph is another folder


def test_rows() -> None:
    rows = [str(case) for case in precision.cases([0.5, 0.1], qat=True)]
    assert rows[:5] == ["fp32", "fp16", "bf16", "int8+fp16", "fp8+fp16"]
    assert rows[5:9] == ["int8", "int8+fp16 --max-drop 0.5", "int8 --max-drop 0.5", "fp8+fp16 --max-drop 0.5"]
    assert rows[-3:] == ["fp32 QAT", "int8+fp16 QAT", "int8 QAT"]
    assert len(precision.cases([], qat=False)) == 6


def test_files(tmp_path: Path) -> None:
    steps = (Step(0, 0.75, 1.0), Step(1, 0.25, 0.875))
    search = Mix(
        "digest", "tensorrt", "mIoU", 0.5, 75.0, (BlockSensitivity("stem", 0.5, 0.125),), steps, ("stem",), 0.25
    )
    scores = {preset: {"miou": 74.75, "lost": 0.25, "equal": 99.5} for preset in PRESETS}
    case = precision.Case("tensorrt", Arithmetic("int8"), 0.5)
    about = {"kind": "precision", "case": str(case), "engine": case.engine, "qat": False, "bytes": 1_500_000}
    record = {**about, "scores": scores, "search": asdict(search)}
    precision._write(tmp_path / "table", [(record, search)], {"scenes": {"default": 12}})
    (stored,) = json.loads((tmp_path / "table.json").read_text("utf-8"))["records"]
    assert stored["scores"]["ms-flip"] == {"miou": 74.75, "lost": 0.25, "equal": 99.5}
    assert stored["search"]["skip"] == ["stem"]
    page = (tmp_path / "table.md").read_text("utf-8")
    row = [str(case), "tensorrt", "1.50", *("74.75", "+0.25", "99.50") * 2]
    assert row in [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()]
    assert "12 default" in page
    assert "keeps stem" in page
    assert "| 1 | 87.5 | 0.250 |" in page
    assert (tmp_path / "table-tensorrt-0.5.png").read_bytes().startswith(b"\x89PNG")


def test_the_committed_table_is_that_of_the_committed_result() -> None:
    data = results.read(results.FOLDER / "precision-demo.json")
    page = (results.FOLDER / "precision-demo.md").read_text("utf-8")
    assert page.startswith("\n\n".join(precision.head(data)) + "\n\n## ")
    assert len(sections.section("precision", data["records"])) == 2


def test_other_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        recipe = LIP

    monkeypatch.setattr("isnet_trt.training.checkpoint.load_checkpoint", lambda path: Other())
    with pytest.raises(SettingsError, match=r"lip\.pth belongs to isnet_resnet50os8_lip"):
        precision.main(["--ckpt", "lip.pth", "--work", str(tmp_path / "work")])
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        precision.main(["--scenes", "0"])


def test_a_half_drawn_scene_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ctrl-C leaves of the street is drawn again by the next run."""

    def interrupted(source: object, target: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            scene_files(tmp_path / "street", [7], (48, 80))
    assert not list((tmp_path / "street").iterdir())
    scene_files(tmp_path / "street", [7], (48, 80))
    (path,) = (tmp_path / "street").iterdir()
    assert (read_image(path) == draw_scene(7, 48, 80).image).all()
