"""The report that a build leaves: its figures are those of the findings, and it says what they were made with."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from isnet_trt.bundle import CheckpointInfo, content_digest, sha256
from isnet_trt.errors import ParityError
from isnet_trt.evaluation.examples import Example
from isnet_trt.evaluation.provenance import Provenance
from isnet_trt.export import stages
from isnet_trt.export.parity import TARGETS, TOLERANCES, BlockErrors, LogitsErrors, ParityResult, Target
from isnet_trt.export.report import HTML, PAGE, PICTURE, Report, Scores
from isnet_trt.export.report_sections import statement
from isnet_trt.export.samples import ComparedImage, Evidence
from isnet_trt.metrics import Confusion, coverage
from isnet_trt.settings import Labels

SOURCE = CheckpointInfo("street.pth", "0123456789abcdef" * 4)
LABELS = Labels(("road", "sky", "person", "tree"), ((1, 2, 3), (4, 5, 6), (7, 8, 9), (0, 99, 0)))
TRUTH = np.repeat([0, 1, 2], 100)


def findings(wrong: int = 10) -> ParityResult:
    """``wrong`` of the 100 labels of class 2 are taken for class 0; class 3 does not occur."""
    confusion, actual = Confusion(4), TRUTH.copy()
    actual[200 : 200 + wrong] = 0
    confusion.add(actual, TRUTH)
    edges = np.linspace(0, 1, 6)
    image = np.full((60, 80, 3), 90, np.uint8)
    maps = TRUTH.reshape(15, 20), actual.reshape(15, 20)
    return ParityResult(
        "ONNX Runtime",
        TOLERANCES["int8"],
        confusion,
        [LogitsErrors("one.png:3", 65, 97, 0.25, 0.0125, 1 - wrong / 300, "one.png")],
        [Example.of("one.png:3", image, *maps)],
        {name: BlockErrors(name, 0.9975, 0.0625, 1.5) for name in ("stem", "head")},
        {name: (edges, np.arange(5), np.arange(5)[::-1].copy()) for name in ("stem", "head")},
    )


def scores() -> Scores:
    right, wrong = Confusion(3), Confusion(3)
    right.add(TRUTH, TRUTH)
    wrong.add(np.where(TRUTH == 2, 0, TRUTH), TRUTH)
    return Scores("3 drawings", right.metrics(), wrong.metrics(), 2 / 3)


def report(**fields: object) -> Report:
    defaults: dict = {
        "recipe": "isnet_demo",
        "checkpoint": SOURCE,
        "precision": "int8",
        "engine": "tensorrt-rtx 1.7",
        "labels": LABELS,
        "result": findings(),
        "evidence": evidence("held out"),
        "provenance": Provenance("isnet-trt build --out 'a b'", "2026-01-02T03:04:05+00:00"),
    }
    return Report(**defaults | fields)


def evidence(origin: str, calibrated: bool = False) -> Evidence:
    return Evidence(origin, "street", (ComparedImage("one.png", "ab" * 32, calibrated),), 9, 8)  # type: ignore[arg-type]


def page(folder: Path, **fields: object) -> str:
    report(**fields).write(folder)
    return (folder / PAGE).read_text("utf-8")


def test_averaged_weights_are_named(tmp_path: Path) -> None:
    text = page(tmp_path, checkpoint=dataclasses.replace(SOURCE, weights="ema"))
    assert f"`{SOURCE.sha256}`, averaged weights (`--weights ema`) |" in text


def test_page_says_what_was_found(tmp_path: Path) -> None:
    about = {"islands": {"node_mean": "ReduceMean over many values"}, "casts": 3}
    built = {"bytes": 1234, "layers": {"correlation": {"int8": 41}}}
    text = page(tmp_path, about=about, built=built, scores=scores())
    assert text.startswith("# int8 engine of isnet_demo\n\n> **✘ Does not meet its bound: 96.667 %")  # 290 of 300
    assert "at least 98.00 % are expected" in text
    assert "Compared: 300 labels" in text
    assert "of 1 input from 1 image that were held out of calibration" in text
    assert "Least equal image: one.png, 96.667 %" in text
    assert "reference 100.00 %, engine 50.00 %: **+50.00 points lost**" in text  # IoU 0.5, 1 and 0
    assert "| stem | 0.997500 | 6.25e-02 | 1.50e+00 |" in text
    assert "| person | 90.00 % | 100 |\n| road | 90.91 % | 100 |\n\n" in text  # and not sky, which is the same
    assert "| person | road | 10 | 10.00 % |" in text
    assert "3 of 4 classes occur. Not: tree." in text
    assert "node_mean: ReduceMean over many values" in text
    assert "correlation: int8: 41" in text
    picture = cv2.imread(str(tmp_path / PICTURE))
    assert picture is not None
    assert (picture == (40, 39, 214)).all(2).sum() > 100  # the bars and outlines are drawn


def test_page_says_what_it_was_made_with(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    text = page(tmp_path, calibration="street: 3 images")
    digest = sha256(tmp_path / "model.onnx")
    assert f"| model.onnx | SHA-256 `{digest}` |" in text
    assert f"contents `{content_digest({'model.onnx': digest})}`" in text
    assert f"| reference | street.pth, SHA-256 `{SOURCE.sha256}` |" in text
    assert "street: 1 of 9: one.png `abababababab`" in text
    assert "| calibration | street: 3 images |" in text
    assert "| date | 2026-01-02T03:04:05+00:00 |" in text
    assert "| command | `isnet-trt build --out 'a b'` |" in text
    assert re.search(r"\| versions \| isnet\\?_trt [\d.]+, Python [\d.]+, numpy", text)
    assert "The bundle's own engine ran: ONNX Runtime." in text


def test_an_engine_that_did_not_run_is_not_praised(tmp_path: Path) -> None:
    text = page(tmp_path, not_run="no GPU here", result=findings(1), scores=scores())
    assert "> **Engine not run; its ONNX graph meets the bound: 99.667 %" in text
    assert "**The bundle's engine (tensorrt-rtx 1.7) was not run**, since this machine cannot: no GPU here." in text
    assert "ONNX graph 50.00 %: **+50.00 points lost**" in text
    assert "![ONNX graph, int8](precision/1-actual.png)" in text
    assert "✔" not in text
    assert "#2b7a2b" not in (tmp_path / HTML).read_text("utf-8")  # the green of an engine that meets its bound
    page(tmp_path, result=findings(1))
    assert "#2b7a2b" in (tmp_path / HTML).read_text("utf-8")


def test_the_users_bound_is_enforced_and_the_expected_one_reported() -> None:
    lines: list[str] = []
    job = SimpleNamespace(target=None, note=lines.append)
    stages._judge(report(), job)  # type: ignore[arg-type]
    assert lines[0].startswith("warning: labels equal 96.667 %, less than the 98.00 % expected of int8")
    stages._judge(report(result=findings(0)), job)  # type: ignore[arg-type]
    assert lines[1] == "labels equal 100.000 %, the bound is 98.00 %"
    job.target = Target(0.97, "so")
    with pytest.raises(ParityError, match=r"96\.667 % .* --min-equal is 97\.00 %; nothing was written"):
        stages._judge(report(target=job.target), job)  # type: ignore[arg-type]


def test_everything_shown_is_in_the_folder_and_in_the_html_page(tmp_path: Path) -> None:
    text = page(tmp_path)
    shown = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(shown) == 6  # four panels, the legend, the figure of the blocks
    assert all((tmp_path / name).is_file() for name in shown)
    html = (tmp_path / HTML).read_text("utf-8")
    assert html.count("<img") == 4 + 3
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", html)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    page(tmp_path)
    assert {path: path.read_bytes() for path in before} == before


def test_differences_are_shown_only_where_there_are_any(tmp_path: Path) -> None:
    text = page(tmp_path, result=findings(wrong=0))
    assert "✔ Meets its bound: 100.000 %" in text
    assert "No label differs" in text
    assert "differ most" not in text
    assert "Least equal image" not in text
    assert not list(tmp_path.glob("precision/*difference*"))
    page(tmp_path)
    difference = cv2.imread(str(tmp_path / "precision" / "1-difference.jpg"))
    assert difference is not None
    magenta = (difference[..., 2] > 150) & (difference[..., 1] < 90)
    assert magenta.mean() == pytest.approx(10 / 300, rel=0.2)


def test_verdict_follows_the_users_bound(tmp_path: Path) -> None:
    lower = report(target=Target(0.95, "`--min-equal` asks for it"))
    assert lower.meets
    assert not report(target=Target(0.97, "so")).meets
    assert lower.to_json()["target"] == {"agreement": 0.95, "met": True}
    assert set(TARGETS) == set(TOLERANCES)
    assert TARGETS["fp32"].agreement > TARGETS["fp16"].agreement > TARGETS["bf16"].agreement > TARGETS["int8"].agreement


def test_a_statement_on_other_images_needs_a_sample_of_them(tmp_path: Path) -> None:
    images = {f"{number}.png": 0.99 for number in range(16)} | {"worst.png": 0.9}
    assert coverage(59) >= 0.95 > coverage(58)
    said = statement(evidence("held out"), images)
    assert f"at least {100 * 0.05 ** (1 / 17):.1f} % of all such images have 90.000 % or more" in said
    assert "too few" in statement(evidence("given"), {"a": 1.0})
    for weak in (evidence("built-in"), evidence("calibration"), evidence("given", calibrated=True), None):
        assert "confidence" not in statement(weak, images)
    for origin, part in (("calibration", "also calibrated on**"), ("built-in", "none of yours")):
        assert part in page(tmp_path, evidence=evidence(origin))
    assert "**of which 1 have the content of a calibration image**" in page(
        tmp_path, evidence=evidence("held out", True)
    )


def test_nothing_is_calibrated_in_float32(tmp_path: Path) -> None:
    text = page(tmp_path, precision="fp32", evidence=evidence("calibration", calibrated=True).uncalibrated())
    assert "from 1 image that you gave." in text
    assert "calibrated on" not in text
    assert evidence("built-in").uncalibrated().origin == "built-in"


def test_names_cannot_change_the_page(tmp_path: Path) -> None:
    name = "a|b <img src=x onerror=alert(1)> `c` [d](https://example.org)"
    labels = Labels((name, *LABELS.names[1:]), LABELS.palette)
    page(tmp_path, labels=labels, checkpoint=CheckpointInfo(name, "0" * 64), engine=name, calibration="x")
    html = (tmp_path / HTML).read_text("utf-8")
    assert "<img src=x" not in html
    assert 'example.org"' not in html
    assert "<img src=x" not in (tmp_path / "precision" / "classes.svg").read_text("utf-8")


def test_manifest_has_the_figures() -> None:
    data = report(about={"casts": 3}, scores=scores()).to_json()
    assert data["agreement"] == 290 / 300
    assert data["scores"]["drop_points"] == 50
    assert data["graph"] == {"casts": 3}
    assert "built" not in data
    assert [block["block"] for block in data["blocks"]] == ["stem", "head"]
    assert data["evidence"]["origin"] == "held out"
    assert data["command"] == "isnet-trt build --out 'a b'"
