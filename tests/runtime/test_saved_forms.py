"""Each form of a saved segmentation, read back by another library."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from rasterio.control import GroundControlPoint
from rasterio.features import rasterize
from rasterio.rpc import RPC
from rasterio.transform import from_origin

from isnet_trt import Segmentation
from isnet_trt.errors import ImageError, PackageMissing, SettingsError
from isnet_trt.pictures.forms import FORMS, check_packages, parse_forms
from isnet_trt.pictures.label_maps import with_void

VOID = 255


def segmentation(labels: Any, classes: int, probabilities: Any = None) -> Segmentation:
    palette = np.array([[37 * i % 256, 91 * i % 256, 151 * i % 256] for i in range(classes)], np.uint8)
    return Segmentation(np.asarray(labels), tuple(f"class {i}" for i in range(classes)), palette, probabilities)


def noise(classes: int, size: tuple[int, int] = (23, 31), dtype: type = np.uint8) -> np.ndarray:
    """Every class, in pixels that touch each other in every way."""
    labels = np.random.default_rng(classes).integers(0, classes, size).astype(dtype)
    labels.flat[:classes] = range(min(classes, labels.size))
    return labels


def with_holes() -> np.ndarray:
    """Three classes, a region with two holes that touch at a corner, an island in one; void in a corner."""
    labels = np.zeros((40, 60), np.uint8)
    labels[5:35, 5:50] = 1
    labels[10:20, 10:20] = 2
    labels[20:30, 20:30] = 0
    labels[22:25, 22:25] = 1
    labels[:3, :4] = VOID
    return labels


MAPS: dict[str, tuple[np.ndarray, int]] = {
    "one pixel": (np.zeros((1, 1), np.uint8), 1),
    "a row": (noise(3, (1, 17)), 3),
    "noise": (noise(5), 5),
    "holes and void": (with_holes(), 3),
    "only void": (np.full((4, 5), VOID, np.uint8), 2),
    "256 classes": (noise(256), 256),
    "not contiguous": (noise(6, (40, 50))[::2, ::-3], 6),
}
LARGE = {"300 classes": (noise(300, dtype=np.uint16), 300), "300 and void": (noise(301, dtype=np.uint16), 300)}


@pytest.fixture(params=MAPS)
def small(request: pytest.FixtureRequest) -> Segmentation:
    return segmentation(*MAPS[request.param])


@pytest.fixture(params=MAPS | LARGE)
def any_map(request: pytest.FixtureRequest) -> Segmentation:
    return segmentation(*(MAPS | LARGE)[request.param])


def test_more_classes_than_the_type_of_the_labels_holds(tmp_path: Path) -> None:
    narrow, wide = (segmentation(noise(200).astype(dtype), 300) for dtype in (np.uint8, np.uint16))
    assert (narrow.color_mask() == wide.color_mask()).all()
    assert (narrow.colours() == wide.colours()).all()
    assert narrow.polygons() == wide.polygons()
    source = write_raster(tmp_path / "in.tif", narrow.labels.shape, crs=UTM, transform=PLACE)
    for form in ("labels", "geotiff"):
        for number, result in enumerate((narrow, wide)):
            result.save(tmp_path / str(number), form, georeference=source)
        assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


def test_labels(any_map: Segmentation, tmp_path: Path) -> None:
    any_map.save(tmp_path / "a.png")
    stored = np.array(Image.open(tmp_path / "a.png"))
    is_class = any_map.labels < len(any_map.names)
    assert stored.dtype == any_map.labels.dtype
    assert (stored[is_class] == any_map.labels[is_class]).all()
    assert (stored[~is_class] == np.iinfo(stored.dtype).max).all()


def test_palette_has_ids_and_colours(small: Segmentation, tmp_path: Path) -> None:
    small.save(tmp_path / "a.png", "palette")
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert image.mode == "P"
        assert (np.array(image) == small.labels).all()
        assert (np.array(image.convert("RGBA")) == small.color_mask()).all()
    for flag, channels in ((cv2.IMREAD_COLOR, 3), (cv2.IMREAD_UNCHANGED, None)):
        assert (cv2.imread(str(tmp_path / "a.png"), flag)[:, :, 2::-1] == small.colours()).all() or channels is None


@pytest.mark.parametrize(("classes", "labels"), [(300, noise(300, dtype=np.uint16)), (256, np.array([[-100, 3]]))])
def test_more_colours_than_a_palette_has(classes: int, labels: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"at most 256 colours.*save it as labels"):
        segmentation(labels, classes).save(tmp_path / "a.png", "palette")
    assert not list(tmp_path.iterdir())


def test_color_is_transparent_where_void_is(any_map: Segmentation, tmp_path: Path) -> None:
    any_map.save(tmp_path / "a.png", "color")
    image = Image.open(tmp_path / "a.png")
    assert image.mode == "RGBA"
    is_class = any_map.labels < len(any_map.names)
    want = np.zeros((*is_class.shape, 4), np.uint8)
    want[is_class] = np.column_stack([any_map.palette, np.full(len(any_map.palette), 255)])[any_map.labels[is_class]]
    assert (np.array(image) == want).all()
    assert (any_map.colours() == want[:, :, :3]).all()


def test_rle_is_a_coco_data_set(any_map: Segmentation, tmp_path: Path) -> None:
    any_map.save(tmp_path / "a.json", "rle", file_name="photo.jpg")
    coco = COCO(str(tmp_path / "a.json"))
    covered = np.zeros(any_map.labels.shape, int)
    for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[1])):
        mask = coco.annToMask(annotation).astype(bool)
        number = annotation["category_id"]
        assert (mask == (any_map.labels == number)).all()
        assert coco.loadCats([number])[0]["name"] == any_map.names[number]
        assert annotation["area"] == mask.sum()
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert annotation["bbox"] == [float(v) for v in box]
        covered += mask
    assert (covered == (any_map.labels < len(any_map.names))).all()
    assert sorted(coco.getAnnIds()) == list(range(1, len(np.unique(any_map.labels[covered > 0])) + 1))
    (image,) = coco.loadImgs([1])
    assert (image["file_name"], image["height"], image["width"]) == ("photo.jpg", *any_map.labels.shape)


def rasterized(collection: dict[str, Any], shape: tuple[int, int], fill: int) -> np.ndarray:
    shapes = [(feature["geometry"], feature["properties"]["class_id"]) for feature in collection["features"]]
    return rasterize(shapes, shape, fill=fill, dtype="int32") if shapes else np.full(shape, fill)


def signed_area(ring: list[list[int]]) -> float:
    x, y = np.array(ring, float).T
    return float(x[:-1] @ y[1:] - x[1:] @ y[:-1]) / 2


def check_polygons(collection: dict[str, Any], labels: np.ndarray, classes: int) -> None:
    """Equal to the label map, and what simple features demand of rings."""
    assert (rasterized(collection, labels.shape, -1) == np.where(labels < classes, labels.astype(int), -1)).all()
    for feature in collection["features"]:
        assert feature["properties"]["area"] == (labels == feature["properties"]["class_id"]).sum()
        inside = 0.0
        for outline, *holes in feature["geometry"]["coordinates"]:
            for ring in (outline, *holes):
                points = [tuple(point) for point in ring]
                assert points[0] == points[-1]
                assert len(set(points)) == len(points) - 1 >= 4
            assert signed_area(outline) > 0
            assert all(signed_area(hole) < 0 for hole in holes)
            inside += sum(map(signed_area, (outline, *holes)))
        assert inside == feature["properties"]["area"]


def test_polygons(any_map: Segmentation, tmp_path: Path) -> None:
    any_map.save(tmp_path / "a.json", "polygons")
    collection = json.loads((tmp_path / "a.json").read_text("ascii"))
    assert (collection["height"], collection["width"]) == any_map.labels.shape
    check_polygons(collection, any_map.labels, len(any_map.names))
    for feature in collection["features"]:
        number = feature["properties"]["class_id"]
        assert feature["properties"]["name"] == any_map.names[number]
        assert feature["properties"]["color"] == any_map.palette[number].tolist()


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_polygons_of_any_map(height: int, width: int, seed: int, classes: int) -> None:
    labels = np.random.default_rng(seed).integers(0, classes, (height, width)).astype(np.uint8)
    check_polygons(segmentation(labels, classes).polygons(), labels, classes)


def test_each_region_is_a_polygon() -> None:
    """Pixels that touch by a corner are two; a region that touches itself at one encloses a hole."""
    diagonal = np.eye(2, dtype=np.uint8)
    (_, ones) = sorted(segmentation(diagonal, 2).polygons()["features"], key=lambda f: f["properties"]["class_id"])
    assert len(ones["geometry"]["coordinates"]) == 2
    ring = np.ones((4, 4), np.uint8)
    ring[1, 1] = ring[0, 0] = 0
    (feature,) = (f for f in segmentation(ring, 2).polygons()["features"] if f["properties"]["class_id"] == 1)
    ((outline, hole),) = feature["geometry"]["coordinates"]
    assert [signed_area(outline), signed_area(hole)] == [15, -1]


# --- probabilities


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 2.0**-11)])
def test_probabilities(dtype: Any, tolerance: float, tmp_path: Path) -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), (4, 5)).transpose(2, 0, 1).astype(np.float32)
    result = segmentation(probabilities.argmax(0).astype(np.uint8), 3, probabilities)
    result.save(tmp_path / "a.npz", "probabilities", dtype=dtype)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as stored:
        assert stored["probabilities"].dtype == dtype
        assert stored["probabilities"].shape == (3, 4, 5)
        assert np.abs(stored["probabilities"].astype(float) - probabilities).max() <= tolerance
        assert tuple(stored["names"]) == result.names


# --- GeoTIFF

UTM = "EPSG:32633"
PLACE = from_origin(500_000, 4_649_776, 0.25, 0.5)
POINTS = [
    GroundControlPoint(row, column, x, y, 0) for row, column, x, y in [(0, 0, 9, 5), (0, 31, 10, 5), (23, 31, 10, 4)]
]
PLACES: dict[str, dict[str, Any]] = {
    "transform": {"crs": UTM, "transform": PLACE},
    "rotated": {"crs": "EPSG:4326", "transform": PLACE @ PLACE.rotation(30)},
    "no reference system": {"transform": PLACE},
    "control points": {"crs": "EPSG:4326", "gcps": POINTS},
}


def write_raster(path: Path, size: tuple[int, int], point: bool = False, **place: Any) -> Path:
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "height": size[0], "width": size[1], **place}
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(np.random.default_rng(0).integers(0, 255, (3, *size), np.uint8))
        if point:
            raster.update_tags(AREA_OR_POINT="Point")
    return path


@pytest.mark.parametrize("point", [False, True], ids=["area", "point"])
@pytest.mark.parametrize("place", PLACES)
def test_geotiff_lies_where_the_picture_does(place: str, point: bool, tmp_path: Path) -> None:
    labels = noise(6)
    source = write_raster(tmp_path / "in.tif", labels.shape, point, **PLACES[place])
    segmentation(labels, 6).save(tmp_path / "out.tif", "geotiff", georeference=source)
    with rasterio.open(source) as before, rasterio.open(tmp_path / "out.tif") as after:
        assert (after.crs, after.transform) == (before.crs, before.transform)
        assert [gcp.asdict() | {"id": 0} for gcp in after.gcps[0]] == [
            gcp.asdict() | {"id": 0} for gcp in before.gcps[0]
        ]
        assert after.gcps[1] == before.gcps[1]
        if "transform" in PLACES[place]:
            assert after.tags().get("AREA_OR_POINT") == before.tags().get("AREA_OR_POINT")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tif", "out.tif"]


def test_geotiff_keeps_rational_polynomials(tmp_path: Path) -> None:
    camera = RPC(
        height_off=30, height_scale=500, lat_off=40, lat_scale=0.1, long_off=15, long_scale=0.1, line_off=11.0,
        line_scale=12.0, samp_off=15.0, samp_scale=16.0, line_num_coeff=[0.0, 0.0, 1.0] + [0.0] * 17,
        line_den_coeff=[1.0] + [0.0] * 19, samp_num_coeff=[0.0, 1.0] + [0.0] * 18, samp_den_coeff=[1.0] + [0.0] * 19,
    )  # fmt: skip
    source = write_raster(tmp_path / "in.tif", (23, 31))
    with rasterio.open(source, "r+") as raster:
        raster.rpcs = camera
    segmentation(noise(6), 6).save(tmp_path / "out.tif", "geotiff", georeference=source)
    with rasterio.open(source) as before, rasterio.open(tmp_path / "out.tif") as after:
        assert before.rpcs is not None
        assert after.rpcs == before.rpcs


def test_geotiff_has_ids_colours_names_and_void(any_map: Segmentation, tmp_path: Path) -> None:
    source = write_raster(tmp_path / "in.tif", any_map.labels.shape, crs=UTM, transform=PLACE)
    any_map.save(tmp_path / "out.tif", "geotiff", georeference=source)
    classes = len(any_map.names)
    with rasterio.open(tmp_path / "out.tif") as raster:
        stored = raster.read(1)
        assert json.loads(raster.tags(1)["class_names"]) == list(any_map.names)
        if classes <= 256:
            colours = raster.colormap(1)
            assert [colours[i][:3] for i in range(classes)] == [tuple(c) for c in any_map.palette.tolist()]
        assert raster.nodata == (None if classes == 256 else np.iinfo(stored.dtype).max)
        assert ((raster.read_masks(1) > 0) == (any_map.labels < classes)).all()
    is_class = any_map.labels < classes
    assert stored.dtype == any_map.labels.dtype
    assert (stored[is_class] == any_map.labels[is_class]).all()


def test_world_file_beside_a_jpeg(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "in.jpg"), np.zeros((23, 31, 3), np.uint8))
    (tmp_path / "in.jgw").write_text("0.25\n0\n0\n-0.5\n500000.125\n4649775.75\n")
    segmentation(noise(6), 6).save(tmp_path / "out.tif", "geotiff", georeference=tmp_path / "in.jpg")
    with rasterio.open(tmp_path / "out.tif") as raster:
        assert raster.transform == PLACE


def refused_geotiff(tmp_path: Path, source: Path, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        segmentation(noise(6), 6).save(tmp_path / "out.tif", "geotiff", georeference=source)
    assert not (tmp_path / "out.tif").exists()


@pytest.mark.filterwarnings("error")
def test_pictures_without_a_usable_georeference(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "plain.jpg"), np.zeros((23, 31, 3), np.uint8))
    refused_geotiff(tmp_path, tmp_path / "plain.jpg", "plain.jpg has no georeference.*leave out geotiff")
    (tmp_path / "text.tif").write_text("no raster")
    refused_geotiff(tmp_path, tmp_path / "text.tif", "text.tif: its georeference cannot be read")
    refused_geotiff(tmp_path, tmp_path / "gone.tif", "gone.tif: its georeference cannot be read")
    other = write_raster(tmp_path / "other.tif", (31, 23), crs=UTM, transform=PLACE)
    refused_geotiff(tmp_path, other, "other.tif is 31x23, the label map 23x31")


def test_a_picture_that_its_orientation_turns(tmp_path: Path) -> None:
    """Also where it is as high as wide, so that its size stays."""
    exif = Image.Exif()
    exif[274] = 6
    pixels = np.random.default_rng(0).integers(0, 255, (23, 23, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.jpg", exif=exif)
    (tmp_path / "in.jgw").write_text("0.25\n0\n0\n-0.5\n500000.125\n4649775.75\n")
    with pytest.raises(ImageError, match=r"in\.jpg: its EXIF orientation turns the picture"):
        segmentation(noise(6, (23, 23)), 6).save(tmp_path / "a.tif", "geotiff", georeference=tmp_path / "in.jpg")


# --- void, arguments, packages


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int64])
def test_void_is_the_largest_value_of_the_type(dtype: type) -> None:
    labels = np.array([[0, 2, 1], [3, 100, 2]]).astype(dtype)
    void = 65535 if dtype == np.uint16 else 255
    assert with_void(labels, 3).tolist() == [[0, 2, 1], [void, void, 2]]
    assert with_void(np.array([[-100, 255]]), 256).tolist() == [[65535, 255]]


def test_overlay_leaves_void_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    labels = with_holes()
    blend = segmentation(labels, 3).overlay(image, 1.0, legend=False, outlines=False, hatching=False)
    assert (blend[labels == VOID] == image[labels == VOID]).all()
    assert (blend[labels != VOID] == segmentation(labels, 3).colours()[labels != VOID]).all()
    lined = segmentation(labels, 3).overlay(image, 1.0, legend=False)
    assert (lined[labels == VOID] == image[labels == VOID]).all()
    nothing = segmentation(np.full((40, 60), VOID, np.uint8), 3)
    assert (nothing.overlay(image) == image).all()
    assert nothing.shares() == {}


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("pallete", "'pallete' is unknown.*did you mean 'palette'"),
        ("overlay", "needs the argument image"),
        ("geotiff", "needs the argument georeference"),
        ("probabilities", "pass probabilities=True"),
    ],
)
def test_what_a_form_lacks(form: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(SettingsError, match=message):
        segmentation(noise(3), 3).save(tmp_path / "a", form)
    assert (tmp_path / "a").read_bytes() == b"old"


def test_lists_of_forms() -> None:
    assert parse_forms("rle, labels,,rle") == ("rle", "labels")
    for text, message in [(" , ", "no form is named"), ("labels,Colour", "labels, overlay, .*did you mean 'color'")]:
        with pytest.raises(SettingsError, match=message):
            parse_forms(text)


WRITERS: dict[str, Callable[[Segmentation], object]] = {
    "pycocotools": lambda result: result.coco_rle(),
    "rasterio": lambda result: result.save("a.tif", "geotiff", georeference="in.tif"),
}


@pytest.mark.parametrize(("module", "form", "extra"), [("pycocotools", "rle", "coco"), ("rasterio", "geotiff", "geo")])
def test_a_missing_package_names_its_extra(module: str, form: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    check_packages(set(FORMS) - {form})
    with pytest.raises(PackageMissing, match=rf"form {form} needs .*\[{extra}\]"):
        check_packages([form])
    with pytest.raises(PackageMissing, match=rf"\[{extra}\]"):
        WRITERS[module](segmentation(noise(3), 3))
