"""predict --save and --json: which files and lines there are, and what is refused before any picture is segmented."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
import tiny_model
from children import explained, run_python
from PIL import Image
from rasterio.transform import from_origin

from isnet_trt import Segmenter, cli
from isnet_trt.commands import predict
from isnet_trt.errors import ImageError
from isnet_trt.pictures.files import read_image
from isnet_trt.pictures.forms import FORMS
from isnet_trt.pictures.geotiff import read_georeference
from isnet_trt.pictures.results import is_result

ALL = ",".join(FORMS)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A GeoTIFF."""
    path = tmp_path / "scene.tif"
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "height": 40, "width": 70}
    with rasterio.open(path, "w", crs="EPSG:32633", transform=from_origin(5e5, 46e5, 1, 1), **profile) as raster:
        raster.write(np.random.default_rng(0).integers(0, 256, (3, 40, 70), np.uint8))
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    cv2.imwrite(str(path), np.random.default_rng(1).integers(0, 256, (40, 70, 3), np.uint8))
    return path


@pytest.fixture
def run(bundle: Path, tmp_path: Path) -> Callable[..., int]:
    def command(*arguments: object) -> int:
        return cli.run(predict.main, [str(argument) for argument in (bundle, *arguments, "--out", tmp_path / "out")])

    return command


def written(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out").iterdir()) if (tmp_path / "out").exists() else []


def test_every_form_is_what_python_gives(run: Any, bundle: Path, scene: Path, tmp_path: Path) -> None:
    assert run(scene, "--save", ALL) == 0
    assert written(tmp_path) == sorted(f"scene_{name}{form.suffix}" for name, form in FORMS.items())
    with Segmenter.open(bundle) as segmenter:
        image = read_image(scene)
        result = segmenter(scene, probabilities=True)
    result.save(tmp_path / "want_rle", "rle", file_name="scene.tif")
    for form in FORMS.keys() - {"rle", "probabilities"}:
        result.save(tmp_path / f"want_{form}", form, image=image, georeference=scene)
    for form in FORMS.keys() - {"probabilities"}:
        got = tmp_path / "out" / f"scene_{form}{FORMS[form].suffix}"
        assert got.read_bytes() == (tmp_path / f"want_{form}").read_bytes(), form
    with np.load(tmp_path / "out" / "scene_probabilities.npz") as stored:
        assert (stored["probabilities"] == result.probabilities).all()


@pytest.mark.parametrize(
    ("options", "forms"),
    [
        ("", "labels.png overlay.png"),
        ("--no-overlay", "labels.png"),
        ("--save palette,rle", "palette.png rle.json"),
        ("--save color --save polygons,color", "color.png polygons.json"),
        ("--no-overlay --save overlay,labels", "labels.png"),
    ],
)
def test_which_files(run: Any, photo: Path, tmp_path: Path, options: str, forms: str) -> None:
    assert run(photo, *options.split()) == 0
    assert written(tmp_path) == sorted(f"photo_{form}" for form in forms.split())


@pytest.mark.parametrize(("kind", "suffix"), [("png", ".png"), ("jpeg", ".jpg"), ("webp", ".webp")])
def test_overlays_look_as_asked(
    run: Any, bundle: Path, photo: Path, tmp_path: Path, kind: str, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--overlay-format", kind, "--alpha", 0.9, "--side-by-side")
    assert run(photo, *options) == 0
    assert written(tmp_path) == ["photo_labels.png", f"photo_overlay{suffix}"]
    with Segmenter.open(bundle) as segmenter:
        want = segmenter(photo).overlay(photo, 0.9, side_by_side=True)
    got = read_image(tmp_path / "out" / f"photo_overlay{suffix}")
    assert got.shape == want.shape
    assert np.abs(got.astype(int) - want).mean() < (0.01 if kind == "png" else 15)  # the photo is noise
    capsys.readouterr()
    assert run(photo.parent, *options) == 0
    assert run(tmp_path / "out", *options) == cli.ERROR  # nothing but results
    assert "no pictures there" in capsys.readouterr().err


def test_half_precision(run: Any, photo: Path, tmp_path: Path) -> None:
    assert run(photo, "--save", "probabilities", "--probability-type", "float16") == 0
    with np.load(tmp_path / "out" / "photo_probabilities.npz") as stored:
        assert stored["probabilities"].dtype == np.float16
        assert stored["probabilities"].shape == (6, 40, 70)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--save labels,overly", "labels, overlay, palette, .*did you mean 'overlay'"),
        ("--save ,", "no form is named"),
        ("--save overlay --no-overlay", "leaves nothing to save"),
        ("--save labels --alpha 0", "--alpha belongs to overlays"),
        ("--save labels --probability-type float32", "--probability-type belongs to probabilities, .* to --save"),
        ("--no-overlay --overlay-format png", "--overlay-format belongs to overlays"),
        ("--save color,rle --side-by-side", "--side-by-side belongs to overlays"),
    ],
)
def test_forms_that_are_refused(
    run: Any, photo: Path, tmp_path: Path, options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = run(photo, *options.split())
    except SystemExit as ended:
        status = ended.code
    assert status == cli.ERROR
    assert re.search(message, capsys.readouterr().err)
    assert written(tmp_path) == []


def test_a_missing_package_ends_the_command_at_once(
    run: Any, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pycocotools"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    assert run(photo, "--save", "labels,rle") == cli.ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert "form rle" in line
    assert ".[coco]" in line
    assert written(tmp_path) == []


def test_more_classes_than_a_palette_has(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = tiny_model.write_bundle(tmp_path / "large", tiny_model.labels(300))
    command = [str(large), str(photo), "--out", str(tmp_path / "out"), "--save", "palette,labels"]
    assert cli.run(predict.main, command) == cli.ERROR
    assert "at most 256 colours and the label map needs 300; save it as labels" in capsys.readouterr().err
    assert written(tmp_path) == []


def test_a_picture_without_georeference_beside_one_that_has_it(
    run: Any, scene: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(photo, scene, "--save", "geotiff,labels") == cli.FAILED
    assert written(tmp_path) == ["scene_geotiff.tif", "scene_labels.png"]
    error = capsys.readouterr().err
    assert "photo.jpg has no georeference" in error
    assert "WARN" not in error


def test_results_are_no_files_that_are_read(run: Any, photo: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "out").mkdir()
    shutil.copy(photo, tmp_path / "out" / "photo_palette.png")
    before = photo.read_bytes()
    assert run(photo, tmp_path / "out" / "photo_palette.png", "--save", "palette") == cli.ERROR
    assert "choose another --out" in capsys.readouterr().err
    assert (tmp_path / "out" / "photo_palette.png").read_bytes() == before


def test_the_documentation_reads_every_form(
    run: Any, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(scene, "--save", ALL) == 0
    (tmp_path / "out").rename(tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "outputs.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    read: dict[str, Any] = {}
    exec(code, read)
    labels = read["labels"]
    assert (np.array(read["palette"]) == labels).all()
    assert (read["rgba"][:, :, :3] == np.array(tiny_model.labels(6).palette)[labels]).all()
    assert (read["probabilities"].argmax(0) == labels).all()
    assert tuple(read["names"]) == tiny_model.labels(6).names
    assert all((mask == (labels == number)).all() for number, mask in read["masks"].items())
    assert read["masks"].keys() == set(np.unique(labels).tolist())
    assert (read["rasterized"] == labels).all()
    assert (read["ids"] == labels).all()
    assert (read["crs"], read["transform"]) == ("EPSG:32633", from_origin(5e5, 46e5, 1, 1))


def test_saved_images_are_no_pictures_to_segment(run: Any, scene: Path, tmp_path: Path) -> None:
    assert run(scene, "--save", ALL) == 0
    assert all(is_result(path) for path in (tmp_path / "out").iterdir() if path.suffix in (".png", ".tif"))
    assert not is_result(scene)


def test_a_picture_from_a_server_has_no_georeference(run: Any, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="download the picture first"):
        read_georeference("https://example.org/scene.tif")


# --- JSON lines


def test_a_line_for_each_picture(bundle: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"damaged")
    command = ("-m", "isnet_trt.predict", bundle, photo, tmp_path / "bad.png", "--out", tmp_path / "out", "--json")
    ran = run_python(*command, "--save", "labels,rle")
    assert ran.returncode == cli.FAILED, explained(ran)
    assert "1 of 2 pictures segmented" in ran.stderr
    good, bad = map(json.loads, ran.stdout.splitlines())
    with Segmenter.open(bundle) as segmenter:
        shares = segmenter(photo).shares()
    assert (good["file"], good["status"], good["height"], good["width"]) == (str(photo), "ok", 40, 70)
    assert good["classes"] == [{"id": c, "name": f"class {c}", "share": share} for c, share in shares.items()]
    assert good["bundle"] == hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest() == bad["bundle"]
    assert {form: Path(path).name for form, path in good["outputs"].items()} == {
        "labels": "photo_labels.png",
        "rle": "photo_rle.json",
    }
    assert all(Path(path).is_file() for path in good["outputs"].values())
    assert good["seconds"].keys() >= {"read", "save", "engine"}
    assert all(seconds > 0 for seconds in good["seconds"].values())
    assert (bad["file"], bad["status"], bad["error"]["type"]) == (str(tmp_path / "bad.png"), "failed", "ImageError")
    assert "not a picture" in bad["error"]["message"]


def test_lines_in_a_file_replace_those_of_an_earlier_run(run: Any, photo: Path, tmp_path: Path, capsys: Any) -> None:
    lines = tmp_path / "lines.jsonl"
    for _ in range(2):
        assert run(photo, "--json", lines) == 0
        (line,) = lines.read_text("ascii").splitlines()
        assert json.loads(line)["status"] == "ok"
    assert capsys.readouterr().out == ""


def test_names_that_are_no_unicode_stay_valid_json(run: Any, photo: Path, tmp_path: Path) -> None:
    try:
        photo.rename(tmp_path / "caf\udce9.jpg")
    except OSError:
        pytest.skip("this file system takes no such names")
    assert run(tmp_path / "caf\udce9.jpg", "--json", tmp_path / "a.jsonl", "--save", "rle") == 0
    (line,) = (tmp_path / "a.jsonl").read_bytes().splitlines()
    json.loads(line)["file"].encode()
    (image,) = json.loads((tmp_path / "out" / "caf\udce9_rle.json").read_bytes())["images"]
    assert image["file_name"] == r"caf\xe9.jpg"


def test_files_that_the_lines_must_not_replace(
    run: Any, bundle: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "disguised.dat", "PNG")
    for target in (photo, tmp_path / "new.png", tmp_path / "disguised.dat", bundle / "bundle.json", tmp_path):
        before = target.read_bytes() if target.is_file() else None
        assert run(photo, "--json", target) == cli.ERROR
        assert f"--json {target}" in capsys.readouterr().err
        assert before is None or target.read_bytes() == before
    assert run(photo, "--save", "rle", "--json", tmp_path / "out" / "photo_rle.json") == cli.ERROR
    assert "choose another --json" in capsys.readouterr().err
    assert written(tmp_path) == []
    assert run(photo, "--json", tmp_path / "nowhere" / "a.jsonl") == cli.ERROR
    assert "--json" in capsys.readouterr().err
    assert written(tmp_path) == []
