"""Segmenting image files on a real local Ray cluster; run by ``make test-ray``."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from children import CHECKOUT, wait_until
from integrations import ray_cluster
from small_bundle import image, write_bundle

from isnet_trt import Segmenter
from isnet_trt.bundle import ENGINE
from isnet_trt.engines.info import EngineInfo
from isnet_trt.errors import BundleError, ImageError, SettingsError
from isnet_trt.pictures.files import encode_png
from isnet_trt.pictures.results import mark_png
from isnet_trt.settings import Inference

pytestmark = [pytest.mark.slow, pytest.mark.ray]
if ray_cluster.MISSING:
    pytest.skip(ray_cluster.MISSING, allow_module_level=True)

import pyarrow.fs  # noqa: E402
import ray.data  # noqa: E402

from isnet_trt.integrations.ray import Actors, segment  # noqa: E402

FLIP = Inference(flip=True)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with ray_cluster.cluster():
        yield


def pixels(number: int) -> np.ndarray:
    """An image of one of three sizes."""
    return image(number, 70 - number % 3, 90 + number % 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """15 images in three folders."""
    root = tmp_path / "images"
    for number in range(15):
        path = root / ("", "a", "a/b")[number % 3] / f"{number}.{('png', 'jpg')[number % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), pixels(number)[:, :, ::-1])
    return root


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def by_path(dataset: ray.data.Dataset) -> dict[str, dict[str, Any]]:
    """The rows by path, each once."""
    rows = dataset.take_all()
    assert Counter(row["path"] for row in rows).most_common(1)[0][1] == 1
    return {row["path"]: row for row in rows}


def labels_of(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def test_label_maps_are_a_column_and_bad_images_rows_with_their_errors(
    folder: Path, bundle: Path, segmenter: Segmenter
) -> None:
    good = files(folder)
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:200])
    (folder / "note.txt").write_text("no image either")
    rows = by_path(segment(folder, bundle, inference=FLIP, rows=7))
    assert rows.keys() == {str(path) for path in (*good, folder / "bad.png", folder / "cut.png")}
    for path in good:
        row = rows[str(path)]
        assert (row["error"], row["found"]) == ("", False)
        np.testing.assert_array_equal(row["labels"], segmenter(path, inference=FLIP).labels)
    for name, reason in (("bad.png", "not a picture"), ("cut.png", "cut off")):
        row = rows[str(folder / name)]
        assert row["error"].startswith("ImageError: ")
        assert str(folder / name) in row["error"]
        assert reason in row["error"]
        assert row["labels"].size == 0


def test_masks_are_written_once_and_a_second_run_does_what_is_missing(
    folder: Path, bundle: Path, segmenter: Segmenter, tmp_path: Path
) -> None:
    images, out = files(folder), tmp_path / "masks"
    (folder / "bad.png").write_bytes(b"no image")
    rows = by_path(segment(str(folder), bundle, out=out, inference=FLIP, rows=8))
    masks = {path: out / path.relative_to(folder).with_name(f"{path.stem}_labels.png") for path in images}
    assert files(out) == sorted(masks.values())
    for path, mask in masks.items():
        assert (rows[str(path)]["labels_path"], rows[str(path)]["error"]) == (str(mask), "")
        assert "labels" not in rows[str(path)]
        np.testing.assert_array_equal(labels_of(mask), segmenter(path, inference=FLIP).labels)
    missing = images[::10]
    for path in missing:
        masks[path].unlink()
    times = {mask: mask.stat().st_mtime_ns for mask in masks.values() if mask.exists()}
    rows = by_path(segment(str(folder), bundle, out=out, inference=FLIP))
    assert {path for path, row in rows.items() if row["found"]} == {str(path) for path in set(images) - set(missing)}
    assert "not a picture" in rows[str(folder / "bad.png")]["error"]
    assert {mask: mask.stat().st_mtime_ns for mask in times} == times
    for path in missing:
        np.testing.assert_array_equal(labels_of(masks[path]), segmenter(path, inference=FLIP).labels)


def test_masks_beside_the_images_are_not_segmented_themselves(folder: Path, bundle: Path) -> None:
    images = files(folder)
    by_path(segment(folder, bundle, beside=True))
    written = {path.with_name(f"{path.stem}_labels.png") for path in images}
    assert set(files(folder)) == {*images, *written}
    rows = by_path(segment(folder, bundle, beside=True))
    assert rows.keys() == {str(path) for path in images}
    assert all(row["found"] for row in rows.values())
    rows = by_path(segment(folder, bundle, beside=True, resume=False))
    assert not any(row["found"] or row["error"] for row in rows.values())


def test_another_file_system_and_files_of_ones_own_dataset(
    folder: Path, bundle: Path, segmenter: Segmenter, tmp_path: Path
) -> None:
    system = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    rows = by_path(segment("images", bundle, out="masks", filesystem=system))
    assert rows.keys() == {str(path.relative_to(tmp_path)) for path in files(folder)}
    assert not any(row["error"] for row in rows.values())
    assert len(files(tmp_path / "masks")) == len(rows)
    assert not [path for path in files(tmp_path) if path.suffix == ".part"]
    items = [{"path": str(path), "number": number} for number, path in enumerate((*files(folder), folder / "none.png"))]
    rows = by_path(segment(ray.data.from_items(items), bundle, out=tmp_path / "own", root=folder))
    assert [rows[item["path"]]["number"] for item in items] == list(range(16))
    assert "none.png cannot be read" in rows[str(folder / "none.png")]["error"]
    for path in files(folder):
        mask = tmp_path / "own" / path.relative_to(folder).with_name(f"{path.stem}_labels.png")
        np.testing.assert_array_equal(labels_of(mask), segmenter(path).labels)


def test_images_that_are_read_already(folder: Path, bundle: Path, segmenter: Segmenter) -> None:
    read = ray.data.read_binary_files(str(folder / "a" / "b"), include_paths=True)
    for path, row in by_path(segment(read, bundle)).items():
        np.testing.assert_array_equal(row["labels"], segmenter(path).labels)
        assert "bytes" not in row
    arrays = ray.data.from_items([{"image": pixels(number), "number": number} for number in range(6)])
    rows = segment(arrays, bundle).take_all()
    assert sorted(row["number"] for row in rows) == list(range(6))
    for row in rows:
        np.testing.assert_array_equal(row["labels"], segmenter(pixels(row["number"])).labels)


def test_the_images_of_a_killed_actor_are_done_again(bundle: Path, segmenter: Segmenter, tmp_path: Path) -> None:
    images, out, killed, ended = tmp_path / "images", tmp_path / "out", set(), threading.Event()
    images.mkdir()
    for number in range(200):
        assert cv2.imwrite(str(images / f"{number}.png"), pixels(number % 9)[:, :, ::-1])

    def kill_after_the_first_masks() -> None:
        def found() -> bool:
            if out.is_dir() and len(files(out)) >= 8:
                killed.update(ray_cluster.processes("SegmentBatch"))
                ray_cluster.kill(killed)
            return bool(killed) or ended.is_set()

        wait_until(found)

    thread = threading.Thread(target=kill_after_the_first_masks)
    thread.start()
    rows = by_path(segment(images, bundle, out=out, inference=FLIP, rows=4))
    ended.set()
    thread.join()
    assert killed
    assert len(rows) == 200
    assert not any(row["error"] or row["found"] for row in rows.values())
    assert {path.name for path in files(out)} == {f"{number}_labels.png" for number in range(200)}
    want = [segmenter(pixels(number), inference=FLIP).labels for number in range(9)]
    for number in range(200):
        np.testing.assert_array_equal(labels_of(out / f"{number}_labels.png"), want[number % 9])


def test_what_cannot_be_done_is_refused_at_once(folder: Path, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, options, error, message in [
        ((folder, tmp_path / "none"), {}, BundleError, "none is not a folder"),
        ((folder, bundle), {"preset": "best"}, SettingsError, "there are: default, ms-flip"),
        ((tmp_path / "nowhere", bundle), {}, ImageError, "nowhere: there is no such file or folder"),
        ((tmp_path / "empty", bundle), {}, ImageError, "there are no images"),
        ((folder, bundle), {"out": tmp_path / "out", "beside": True}, SettingsError, "not both"),
        (("nothing://here/a.png", bundle), {}, SettingsError, "no file system is known"),
        (([], bundle), {}, ImageError, "the list of paths is empty"),
        ((folder, bundle), {"rows": 0}, SettingsError, "rows is 0; give 1 or more"),
        ((folder, bundle), {"out": files(folder)[0] / "out"}, SettingsError, "out: .* cannot be created: "),
    ]:
        with pytest.raises(error, match=message):
            segment(*arguments, **options)
    (folder / "0.jpg").write_bytes(files(folder)[0].read_bytes())
    with pytest.raises(SettingsError, match=r"0\.jpg, .*0\.png would be written to one mask"):
        segment(folder, bundle, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for settings, message in [
        ({"count": 0}, "actors: count 0; give 1 or more"),
        ({"count": (3, 1)}, r"actors: count \(3, 1\)"),
        ({"io_threads": 0}, "io_threads 0; the first"),
        ({"num_gpus": -1}, "num_gpus -1"),
        ({"engine": "none"}, "engine 'none' is unknown"),
    ]:
        with pytest.raises(SettingsError, match=message):
            Actors(**settings)


def test_masks_of_another_bundle_or_other_settings_are_written_again(
    folder: Path, bundle: Path, segmenter: Segmenter, tmp_path: Path
) -> None:
    """Never mixed with those of this job; a file that is no mask stays, and its image has the error."""
    out = tmp_path / "masks"
    other = write_bundle(tmp_path / "other", recipe="another").folder
    assert not any(row["found"] for row in by_path(segment(folder, other, out=out)).values())
    assert not any(row["found"] for row in by_path(segment(folder, bundle, out=out)).values())
    assert not any(row["found"] for row in by_path(segment(folder, bundle, out=out, inference=FLIP)).values())
    first, second, third, *_ = images = files(folder)
    masks = {path: out / path.relative_to(folder).with_name(f"{path.stem}_labels.png") for path in images}
    masks[first].write_bytes(b"of somebody else")
    assert cv2.imwrite(str(masks[second]), labels_of(masks[second]))
    masks[third].write_bytes(mark_png(encode_png(labels_of(masks[third]))))  # as versions before wrote it
    rows = by_path(segment(folder, bundle, out=out, inference=FLIP))
    for path in (first, second):
        assert not rows[str(path)]["found"]
        assert f"{masks[path]} exists and is no mask of isnet_trt: move it" in rows[str(path)]["error"]
    assert masks[first].read_bytes() == b"of somebody else"
    assert [row["path"] for row in rows.values() if not (row["found"] or row["error"])] == [str(third)]
    for path in images[2:]:
        np.testing.assert_array_equal(labels_of(masks[path]), segmenter(path, inference=FLIP).labels)
    rows = by_path(segment(folder, bundle, out=out, inference=FLIP, resume=False))
    assert not any(row["found"] or row["error"] for row in rows.values())
    np.testing.assert_array_equal(labels_of(masks[first]), segmenter(first, inference=FLIP).labels)


def test_an_image_that_is_removed_meanwhile_is_a_row_with_its_error(folder: Path, bundle: Path, tmp_path: Path) -> None:
    dataset = segment(folder, bundle, out=tmp_path / "masks")
    gone = files(folder)[3]
    gone.unlink()
    rows = by_path(dataset)
    assert {path for path, row in rows.items() if row["error"]} == {str(gone)}
    assert "cannot be read" in rows[str(gone)]["error"]
    assert len(files(tmp_path / "masks")) == len(rows) - 1


def test_the_code_of_the_page_runs(folder: Path, bundle: Path, tmp_path: Path) -> None:
    """docs/scale.md with local paths and without GPUs; its table: tests/docs/test_scale_page.py, its service: Serve."""
    page = (CHECKOUT / "docs" / "scale.md").read_text("utf-8")
    job, _, formula = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (folder / "bad.png").write_bytes(b"no image")
    for text, own in (
        ("s3://bucket/images", str(folder)),
        ("/shared/bundles/ade", str(bundle)),
        ("s3://bucket/masks", str(tmp_path / "masks")),
        ("count=16, num_gpus=0.5", "count=1"),
    ):
        assert text in job
        job = job.replace(text, own)
    names: dict[str, Any] = {}
    exec(compile(job, "scale.md", "exec"), names)
    assert [row["path"] for row in names["failed"]] == [str(folder / "bad.png")]
    assert len(files(tmp_path / "masks")) == 15
    exec(compile(formula, "scale.md", "exec"), names)
    times = {"t_gpu": 0.02, "t_read": 0.01, "t_decode": 0.03, "t_write": 0.01, "bandwidth": 1e9, "image_bytes": 5e5}
    rate = names["images_per_second"]
    assert rate(8, 2, 1, 100, **times) == (pytest.approx(8 * 2 / 0.05), "threads")
    assert rate(8, 2, 2, 1000, **times) == (pytest.approx(400), "GPU")
    assert rate(64, 2, 4, 9999, **times) == (pytest.approx(2000), "reading")
    assert rate(8, 2, 4, 4, **times) == (pytest.approx(4 / 0.05), "cores")


def test_a_bundle_that_cannot_run_on_the_cluster_says_why(folder: Path, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other", EngineInfo("tensorrt", "10.13", ENGINE, ("8.9",), "NVIDIA L4"))
    with pytest.raises(Exception, match="EngineUnavailable"):
        segment(folder, other.folder).take_all()
    rows = by_path(segment(folder, other.folder, actors=Actors(engine="onnxruntime")))
    assert not any(row["error"] for row in rows.values())
