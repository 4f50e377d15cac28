"""Calibration: ranges, observers, the table on disk, and the inputs from a user's folder."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from export_models import altered
from onnx import TensorProto
from own_pictures import write_pngs

from isnet_trt.errors import BuildError, SettingsError
from isnet_trt.export.network_inputs import NetworkInput
from isnet_trt.export.quantise import Table, calibrate, calibration_inputs, open_graph, quantise
from isnet_trt.export.quantise.calibration import _stored
from isnet_trt.export.quantise.formats import FP8, INT8, SMALLEST_SCALE, UINT8, Format, weight_scales
from isnet_trt.export.quantise.observers import OBSERVERS, choose, entropy, maximum, mse
from isnet_trt.export.quantise.placement import calibrated_tensors
from isnet_trt.export.quantise.table import digest
from isnet_trt.export.quantise.tensor_statistics import BINS, TensorStatistics
from isnet_trt.recipes import recipe
from isnet_trt.settings import Inference

DEMO = recipe("isnet_demo")


def observed(x: np.ndarray, parts: int = 3) -> TensorStatistics:
    """``x`` as a tensor of five channels and seven rows, seen in parts one after the other."""
    seen = TensorStatistics()
    for part in np.array_split(x.reshape(5, 7, -1), parts, axis=2):
        seen.add("x", part[None].astype(np.float32))
    return seen


def pictures(count: int, height: int = 49, width: int = 67) -> list[NetworkInput]:
    random = np.random.default_rng(count)
    return [
        NetworkInput(str(i), random.standard_normal((1, 3, height, width)).astype(np.float32)) for i in range(count)
    ]


class Counted(list):
    """Pictures with a fingerprint, that count how often one was asked for."""

    fingerprint = "the same"
    limit = 9


@pytest.mark.parametrize("form", [INT8, UINT8, FP8], ids=lambda form: form.name)
@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (0.0, 7.0), (-2.0, -1.0), (0.0, 0.0), (1e-30, 2e-30)])
def test_formats_cover_their_range(form, low: float, high: float) -> None:  # type: ignore[no-untyped-def]
    scale = form.fit(low, high)
    x = np.array([low, 0.0, high, (low + high) / 2], np.float32)
    step = max(-low, high, high - low) / (16 if form is FP8 else 127)
    assert np.abs(form.fake(x, scale) - x).max() <= max(step, 1e-29) * 1.01
    assert form.fake(np.zeros(1, np.float32), scale)[0] == 0  # zero is exact: padding and ReLU stay what they are
    far = form.fake(np.array([1e6], np.float32), scale)
    assert np.isfinite(far).all()
    assert form.lowest <= scale.zero <= form.highest


def test_dead_weight_channel_has_a_scale() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    weight[1] = 0
    scales = weight_scales(weight, INT8)
    assert scales[1] == np.float32(SMALLEST_SCALE)
    stored = INT8.store(weight, scales[:, None, None, None])
    assert not stored[1].any()
    assert set(np.abs(stored[[0, 2, 3]]).reshape(3, -1).max(1)) == {127}


def test_histogram_grows_and_keeps_every_value() -> None:
    random = np.random.default_rng(1)
    x = random.standard_normal(5 * 7 * 33).astype(np.float32)
    x[-1] = -900.0  # the reach is enlarged on the way
    seen = observed(x)
    assert (seen.low, seen.high) == (x.min(), x.max())
    assert seen.counts.sum() == x.size
    assert seen.reach == 1024
    expected, _ = np.histogram(x, 2 * BINS, (-1024, 1024))
    # The bins are half-open here and there alike, but values were rounded while the bins were narrow.
    assert np.abs(np.cumsum(seen.counts) - np.cumsum(expected)).max() <= 2


@pytest.mark.parametrize("form", [INT8, UINT8, FP8], ids=lambda form: form.name)
def test_observers_on_known_distributions(form) -> None:  # type: ignore[no-untyped-def]
    random = np.random.default_rng(2)
    x = random.standard_normal(5 * 7 * 999)
    x[:3] = (80.0, -75.0, 60.0)  # three outliers among 35 000 values
    seen = observed(x)
    ranges = {name: observe(seen, form) for name, observe in OBSERVERS.items()}
    assert ranges["max"] == (-75.0, 80.0)
    low, high = ranges["percentile"]
    assert -5 < low < -3 < 3 < high < 5  # one in ten thousand of a normal distribution lies beyond 3.7
    assert 2 < ranges["entropy"][1] <= 80
    assert 2 < ranges["mse"][1] <= 80
    choice = choose(seen, form)
    assert choice.errors[choice.observer] == min(choice.errors.values())
    assert choice.errors["mse"] <= choice.errors["max"]  # the whole range is among those that mse tries


def test_entropy_and_mse_cut_what_costs_resolution() -> None:
    """Two levels on each side of zero: covering the outliers would leave nothing of the body."""
    coarse = Format("two bits", TensorProto.INT8, -2, 2, True)
    x = np.random.default_rng(4).standard_normal(5 * 7 * 999)
    x[0] = 9.0
    seen = observed(x)
    assert mse(seen, coarse)[1] < 5
    assert entropy(seen, coarse)[1] < 5
    assert maximum(seen, coarse)[1] == 9.0


def test_table_survives_the_disk_and_goes_on(graph: onnx.ModelProto, tmp_path: Path) -> None:
    every = Counted(pictures(3))
    whole = calibrate(graph, every, progress=False)
    calibrate(graph, Counted(every[:1]), tmp_path, progress=False)
    table = calibrate(graph, every, tmp_path, progress=False)
    assert table.inputs == ["0", "1", "2"]
    again = Table.load(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibration-3.npz", "calibration.json"]
    for name, seen in whole.records.items():
        assert again.records[name].numbers() == seen.numbers()
        np.testing.assert_array_equal(again.records[name].counts, seen.counts)


def test_table_of_other_inputs_or_damaged_is_made_anew(graph: onnx.ModelProto, tmp_path: Path) -> None:
    calibrate(graph, Counted(pictures(2)), tmp_path, progress=False)
    other = Counted(pictures(1))
    other.fingerprint = "another"
    assert calibrate(graph, other, tmp_path, progress=False).inputs == ["0"]
    (tmp_path / "calibration-1.npz").write_bytes(b"half a file")
    with pytest.raises(BuildError, match="no calibration table"):
        Table.load(tmp_path)
    assert calibrate(graph, other, tmp_path, progress=False).inputs == ["0"]
    with pytest.raises(BuildError, match="does not exist"):
        Table.load(tmp_path / "nowhere")


def test_table_of_another_graph_is_made_anew(graph: onnx.ModelProto, tmp_path: Path) -> None:
    calibrate(graph, Counted(pictures(2)), tmp_path, progress=False)
    other = altered(graph, {"backbone_net.layer2.0.conv1.weight": lambda weight: 3 * weight})
    table = calibrate(other, Counted(pictures(2)), tmp_path, progress=False)
    assert table.graph == digest(other) != digest(graph)
    fresh = calibrate(other, pictures(2), progress=False)
    assert {name: seen.high for name, seen in table.records.items()} == {
        name: seen.high for name, seen in fresh.records.items()
    }


def test_table_of_another_schema_is_made_anew(graph: onnx.ModelProto, tmp_path: Path) -> None:
    whole = calibrate(graph, Counted(pictures(1)), tmp_path, progress=False)
    content = json.loads((tmp_path / "calibration.json").read_text("utf-8"))
    content["tensors"]["image"]["high"] = 1e6
    for schema, match in ((2, "has schema 2, this isnet_trt reads 1"), ("x" * 1000, "has schema 'x{39}, this")):
        (tmp_path / "calibration.json").write_text(json.dumps({**content, "schema": schema}), "utf-8")
        with pytest.raises(BuildError, match=match):
            Table.load(tmp_path)
    again = calibrate(graph, Counted(pictures(1)), tmp_path, progress=False)
    assert again.records["image"].high == whole.records["image"].high < 10
    assert json.loads((tmp_path / "calibration.json").read_text("utf-8"))["schema"] == 1


def test_table_of_an_earlier_version_still_serves(graph: onnx.ModelProto, tmp_path: Path) -> None:
    """It also kept statistics of channels, which nothing reads."""
    calibrate(graph, Counted(pictures(1)), tmp_path, progress=False)
    content = json.loads((tmp_path / "calibration.json").read_text("utf-8"))
    content["tensors"] = {name: {**numbers, "total": 9} for name, numbers in content["tensors"].items()}
    (tmp_path / "calibration.json").write_text(json.dumps(content), "utf-8")
    assert Table.load(tmp_path).inputs == ["0"]


def change(folder: Path, alter: Callable[[dict[str, Any]], object]) -> None:
    """Alter the JSON of a stored table; what is no number of JSON is written as Python does, ``NaN``."""
    content = json.loads((folder / "calibration.json").read_text("utf-8"))
    alter(content)
    (folder / "calibration.json").write_text(json.dumps(content), "utf-8")


def of_image(**numbers: object) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["tensors"]["image"].update(numbers)


def cut_archive(folder: Path) -> None:
    archive = folder / "calibration-1.npz"
    archive.write_bytes(archive.read_bytes()[:-3000])


def other_archive(folder: Path) -> None:
    """What a build leaves that was killed between its two files."""
    with np.load(folder / "calibration-1.npz") as stored:
        np.savez(folder / "calibration-1.npz", **{name: counts + 1 for name, counts in stored.items()})


def old_archive_of_wrong_counts(folder: Path) -> None:
    """Versions before the archive's digest wrote none."""
    change(folder, lambda content: content.pop("arrays_sha256"))
    with np.load(folder / "calibration-1.npz") as stored:
        np.savez(folder / "calibration-1.npz", **{name: counts[:-1] for name, counts in stored.items()})


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut archive": (cut_archive, "is not the archive that belongs to it"),
    "other archive": (other_archive, "is not the archive that belongs to it"),
    "old archive": (old_archive_of_wrong_counts, "has an impossible histogram"),
    "no archive": (lambda folder: (folder / "calibration-1.npz").unlink(), "No such file"),
    "archive elsewhere": (lambda f: change(f, lambda c: c.update(arrays="../x.npz")), "is no archive of histograms"),
    "no tensors": (lambda folder: change(folder, lambda content: content.update(tensors={})), "lacks image, "),
    "one missing": (lambda folder: change(folder, lambda content: content["tensors"].pop("image")), "lacks image$"),
    "NaN": (lambda folder: change(folder, of_image(low=math.nan)), "NaN is no finite number"),
    "infinity": (lambda folder: change(folder, of_image(high=math.inf)), "Infinity is no finite number"),
    "reversed": (lambda folder: change(folder, of_image(low=2.0, high=-2.0)), "'image' has impossible numbers"),
    "large": (lambda folder: change(folder, of_image(high=10**400)), "a number beyond 64 bits"),
    "text": (lambda folder: change(folder, of_image(low="-1")), "'image' has impossible numbers"),
    "seen": (lambda folder: change(folder, of_image(seen=0)), "'image' has impossible numbers"),
    "list": (lambda folder: (folder / "calibration.json").write_text("[]"), "it is no JSON object"),
    "inputs": (lambda folder: change(folder, lambda content: content.update(inputs=7)), "must be a list"),
    "cut JSON": (lambda folder: (folder / "calibration.json").write_text('{"schema": 1,'), "no calibration table"),
    "deep": (lambda folder: (folder / "calibration.json").write_text(10**6 * "["), "no calibration table"),
    "1e999": (lambda folder: (folder / "calibration.json").write_text('{"schema": 1e999}'), "1e999 is no finite"),
    "not UTF-8": (lambda folder: (folder / "calibration.json").write_bytes(b"\xff"), "no calibration table"),
}


@pytest.fixture(scope="module")
def stored(graph: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    calibrate(graph, Counted(pictures(1)), folder, progress=False)
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_table_that_is_not_whole_is_never_used(
    graph: onnx.ModelProto, stored: Path, tmp_path: Path, damage: str
) -> None:
    folder = Path(shutil.copytree(stored, tmp_path / "table"))
    spoil, reason = DAMAGES[damage]
    spoil(folder)
    warnings: list[str] = []
    fresh = Table(digest(graph), Counted(pictures(1)).fingerprint)
    # Nothing is run: what matters is that the stored table is not taken.
    assert _stored(fresh, calibrated_tensors(graph), 1, folder, warnings.append) is None
    assert len(warnings) == 1
    assert re.search(reason, warnings[0].split("; remove it")[0].rstrip(")"))
    assert warnings[0].startswith("warning: calibrating again: ")


def test_a_whole_table_is_taken_and_one_of_another_model_is_not(graph: onnx.ModelProto, stored: Path) -> None:
    fingerprint, warnings = Counted(pictures(1)).fingerprint, list[str]()
    names = calibrated_tensors(graph)
    assert _stored(Table(digest(graph), fingerprint), names, 1, stored, warnings.append) is not None
    assert warnings == []
    assert _stored(Table("0" * 64, fingerprint), names, 1, stored, warnings.append) is None
    assert "is of another model or of other pictures" in warnings[0]


def test_a_full_disk_shows_before_the_first_input(
    graph: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, *content: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: Full())
    with pytest.raises(BuildError, match=r"table cannot be written \(No space left on device\).*make room"):
        calibrate(graph, (pytest.fail("an input was made") for _ in range(1)), tmp_path / "table", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_nan_names_the_tensor(graph: onnx.ModelProto) -> None:
    bias = "backbone_net.layer2.0.conv1.bias"
    wrong = altered(graph, {bias: lambda values: np.full_like(values, np.inf)})
    node = next(node for node in wrong.graph.node if bias in node.input)
    relu = next(other.output[0] for other in wrong.graph.node if node.output[0] in other.input)
    with pytest.raises(BuildError, match=f"'({node.output[0]}|{relu})' has NaN or infinite"):
        calibrate(wrong, pictures(1), progress=False)
    with pytest.raises(SettingsError, match="no inputs"):
        calibrate(graph, [], progress=False)


def test_constant_pictures_and_dead_channels_work(graph: onnx.ModelProto) -> None:
    names = [f"backbone_net.layer3.0.conv1.{part}" for part in ("weight", "bias")]
    dead = altered(graph, dict.fromkeys(names, np.zeros_like))  # the layer gives zero: a range without width behind it
    grey = [NetworkInput("grey", np.zeros((1, 3, 41, 57), np.float32))]
    table = calibrate(dead, grey, progress=False)
    assert "image" in table.idle()
    assert len(table.idle()) >= 2
    for flavour in ("cpu", "tensorrt", "fp8"):
        with open_graph(quantise(dead, table, flavour), threads=2) as engine:
            assert np.isfinite(engine.run(grey[0].pixels)).all()


def folder_of(path: Path, count: int) -> Path:
    return write_pngs(path, np.random.default_rng(count).integers(0, 255, (count, 60, 90, 3), np.uint8))


def test_inputs_are_the_windows_of_the_runtime(tmp_path: Path) -> None:
    folder_of(tmp_path, 2)
    inference = Inference("slide", (256, 512), (171, 341), (0.75, 1.25), flip=True)
    inputs = calibration_inputs(tmp_path, DEMO.preprocess, inference, limit=9)
    result = list(inputs)
    assert len(result) == 9
    assert len({entry.name for entry in result}) == 9
    assert [entry.name.split(", window")[0] for entry in result[:4]] == ["00.png", "01.png", "00.png", "01.png"]
    assert {entry.pixels.shape for entry in result} == {(1, 3, 256, 512)}
    whole = list(calibration_inputs(tmp_path, DEMO.preprocess, DEMO.default))
    assert [entry.pixels.shape for entry in whole] == [(1, 3, 512, 768)] * 2  # one window each, then there are no more
    np.testing.assert_array_equal(result[0].pixels, next(iter(inputs)).pixels)


def test_bad_folders_are_told_apart(tmp_path: Path) -> None:
    ask = (DEMO.preprocess, DEMO.default)
    with pytest.raises(SettingsError, match="does not exist"):
        calibration_inputs(tmp_path / "nowhere", *ask)
    with pytest.raises(SettingsError, match="no pictures"):
        calibration_inputs(tmp_path, *ask)
    with pytest.raises(SettingsError, match="0 inputs"):
        calibration_inputs(tmp_path, *ask, limit=0)
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(SettingsError, match=r"none of the 1 pictures can be used: .*bad\.jpg"):
        list(calibration_inputs(tmp_path, *ask))
    folder_of(tmp_path, 1)
    (tmp_path / "cut.png").write_bytes((tmp_path / "00.png").read_bytes()[:99])
    inputs = calibration_inputs(tmp_path, *ask)
    assert [entry.name for entry in inputs] == ["00.png"]
    assert [Path(reason.partition(": ")[0]).name for reason in inputs.skipped] == ["bad.jpg", "cut.png"]
    assert "00.png is the only picture" in inputs.notes[0]
    (tmp_path / "bad.jpg").unlink()
    (tmp_path / "cut.png").unlink()
    (note,) = calibration_inputs(tmp_path, *ask).notes
    assert "00.png is the only picture" in note


def test_what_is_no_picture_in_a_folder(tmp_path: Path) -> None:
    ask = (DEMO.preprocess, DEMO.default)
    folder_of(tmp_path, 1)
    (tmp_path / "album.png").mkdir()
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    cv2.imwrite(str(tmp_path / "line.png"), np.zeros((1, 5000, 3), np.uint8))
    inputs = calibration_inputs(tmp_path, *ask)
    assert len(inputs.fingerprint) == 64
    assert [entry.name for entry in inputs] == ["00.png"]
    assert [re.split(": | cannot", reason)[0] for reason in inputs.skipped] == [
        str(tmp_path / "gone.jpg"),
        str(tmp_path / "line.png"),
    ]
    assert "too narrow" in inputs.skipped[1]
    assert inputs.readable == [tmp_path / "00.png"]


def test_other_pictures_of_one_name_and_size_are_others(tmp_path: Path) -> None:
    """Frames without compression are all equally large."""
    result = []
    for moment, grey in ((1_000, 0), (2_000, 200)):
        cv2.imwrite(str(tmp_path / "frame.bmp"), np.full((40, 60, 3), grey, np.uint8))
        os.utime(tmp_path / "frame.bmp", (moment, moment))
        result.append(calibration_inputs(tmp_path, DEMO.preprocess, DEMO.default).fingerprint)
    assert result[0] != result[1]


def test_table_of_more_inputs_than_asked_is_made_anew(graph: onnx.ModelProto, tmp_path: Path) -> None:
    every, few = Counted(pictures(3)), Counted(pictures(1))
    calibrate(graph, every, tmp_path, progress=False)
    few.limit = 1
    assert calibrate(graph, few, tmp_path, progress=False).inputs == ["0"]


def test_table_that_cannot_be_kept(graph: onnx.ModelProto, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("years of work")
    with pytest.raises(BuildError, match=r"file is no folder: .*move it away"):
        calibrate(graph, pictures(1), tmp_path / "file", progress=False)
    with pytest.raises(BuildError, match=r"cannot be written .*make room"):
        Table().save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "years of work"
