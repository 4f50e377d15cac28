"""The four datasets in their real layouts, as miniature trees, and every way in which they can be broken."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from golden_files import GOLDEN
from miniature import MAKERS, make_ade20k, make_cityscapes, make_cocostuff10k, make_lip
from PIL import Image

from isnet_trt.datasets.layouts import label_values, open_dataset
from isnet_trt.datasets.picture_set import LabelValues
from isnet_trt.datasets.reading import read_labels
from isnet_trt.errors import DataError, SettingsError
from isnet_trt.recipes import DATASETS, IGNORE, recipe
from isnet_trt.training.data.augment import Augment


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", MAKERS)
def test_labels_and_pictures_are_those_that_were_written(name: str, split: str, tmp_path: Path) -> None:
    truth = MAKERS[name](tmp_path)
    opened = open_dataset(name, tmp_path, split)
    assert len(opened) == len(truth[split]) == len(opened.names)
    assert set(opened.names) == set(truth[split])
    assert opened.labels == DATASETS[name].labels
    for i, one in enumerate(opened.names):
        image, labels = opened[i]
        np.testing.assert_array_equal(labels, truth[split][one])
        np.testing.assert_array_equal(image, cv2.imread(str(opened.files[i][0])))  # B, G, R
        assert (image.dtype, labels.dtype) == (np.uint8, np.int16)
        assert image.shape == (*labels.shape, 3)


@pytest.mark.parametrize("name", ["ade20k", "cityscapes", "lip"])
def test_lists_choose_and_order(name: str, tmp_path: Path) -> None:
    truth = MAKERS[name](tmp_path, lists=True)  # type: ignore[operator]
    listed = next(tmp_path.rglob("train*.txt"))
    lines = listed.read_text("utf-8").splitlines()
    listed.write_text("\r\n".join([lines[2], "", lines[0], ""]), "utf-8")
    names = list(truth["train"])
    assert open_dataset(name, tmp_path, "train").names == (names[2], names[0])


def test_archives_unpacked_into_folders_of_their_names(tmp_path: Path) -> None:
    truth = make_lip(tmp_path / "flat", lists=True)
    deep = tmp_path / "LIP"
    for split in ("train", "val"):
        for kind, top in (("images", "TrainVal_images"), ("segmentations", "TrainVal_parsing_annotations")):
            (deep / top / top).mkdir(parents=True, exist_ok=True)
            (tmp_path / "flat" / f"{split}_{kind}").rename(deep / top / top / f"{split}_{kind}")
    assert set(open_dataset("lip", tmp_path, "val").names) == set(truth["val"])  # the folder above R
    city = make_cityscapes(tmp_path / "city")
    for kind in ("leftImg8bit", "gtFine"):
        (tmp_path / "city" / f"{kind}_trainvaltest").mkdir()
        (tmp_path / "city" / kind).rename(tmp_path / "city" / f"{kind}_trainvaltest" / kind)
    assert set(open_dataset("cityscapes", tmp_path / "city", "train").names) == set(city["train"])


def test_root_is_found_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_ade20k(tmp_path / "ADE20k")
    monkeypatch.chdir(tmp_path)
    assert len(open_dataset("ade20k", None, "train")) == 3
    assert len(open_dataset("ade20k", tmp_path / "ADE20k" / "ADEChallengeData2016", "val")) == 2


def test_a_set_can_be_sent_to_a_worker(tmp_path: Path) -> None:
    make_cocostuff10k(tmp_path)
    opened = open_dataset("cocostuff10k", tmp_path, "val")
    sent = pickle.loads(pickle.dumps(opened))
    assert sent == opened
    np.testing.assert_array_equal(sent[1][1], opened[1][1])


@pytest.mark.parametrize("name", MAKERS)
def test_pictures_go_through_their_recipes_pipeline(name: str, tmp_path: Path) -> None:
    MAKERS[name](tmp_path)
    opened, one = open_dataset(name, tmp_path, "train"), recipe(f"isnet_resnet50os8_{name}")
    for i in range(len(opened)):
        image, labels = opened[i]
        first, again = (Augment.of(one)(image, labels, np.random.default_rng([3, i])) for _ in range(2))
        x, target = first
        assert x.shape[1:] == target.shape
        assert sorted(target.shape) == sorted(one.crop)
        assert set(np.unique(target)) <= {*np.unique(labels), IGNORE, *np.ravel(one.labels.flip_pairs)}
        assert (target != IGNORE).any()
        np.testing.assert_array_equal(x, again[0])
        np.testing.assert_array_equal(target, again[1])


def test_half_unpacked_trees_are_named(tmp_path: Path) -> None:
    make_ade20k(tmp_path)
    top = tmp_path / "ADEChallengeData2016"
    (top / "annotations/training/ADE_train_00000002.png").unlink()
    with pytest.raises(DataError, match=r"annotations/training: 1 file missing .*ADE_train_00000002\.png"):
        open_dataset("ade20k", tmp_path, "train")
    (top / "images/validation/ADE_val_00000001.jpg").unlink()
    with pytest.raises(DataError, match=r"images/validation: 1 file missing .*ADE_val_00000001\.jpg"):
        open_dataset("ade20k", tmp_path, "val")
    shutil.rmtree(top / "annotations")
    with pytest.raises(DataError, match=r"annotations/training is missing: the dataset is half unpacked"):
        open_dataset("ade20k", tmp_path, "train")


def test_listed_but_missing_pictures_are_named(tmp_path: Path) -> None:
    make_cityscapes(tmp_path, lists=True)
    (tmp_path / "leftImg8bit/val/lindau/lindau_000001_000019_leftImg8bit.png").unlink()
    with pytest.raises(DataError, match=r"lindau/lindau_000001_000019_leftImg8bit\.png") as raised:
        open_dataset("cityscapes", tmp_path, "val")
    assert "val.txt" in str(raised.value)


def test_empty_or_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        open_dataset("lip", tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match=r"does not look like lip: expected train_images"):
        open_dataset("lip", tmp_path, "train")
    (tmp_path / "train_images").mkdir()
    (tmp_path / "train_segmentations").mkdir()
    with pytest.raises(DataError, match="holds no picture"):
        open_dataset("lip", tmp_path, "train")
    with pytest.raises(SettingsError, match="no dataset is called 'pascal'"):
        open_dataset("pascal", tmp_path, "train")
    with pytest.raises(SettingsError, match="split 'all'"):
        open_dataset("lip", tmp_path, "all")


def test_coco_stuff_needs_its_lists(tmp_path: Path) -> None:
    make_cocostuff10k(tmp_path)
    (tmp_path / "imageLists/test.txt").unlink()
    with pytest.raises(DataError, match=r"imageLists/test\.txt is missing"):
        open_dataset("cocostuff10k", tmp_path, "val")


def test_bad_lists(tmp_path: Path) -> None:
    make_lip(tmp_path, lists=True)
    (tmp_path / "train_id.txt").write_text("77_10000\n78_10001\n77_10000\n", "utf-8")
    with pytest.raises(DataError, match="'77_10000' is listed twice"):
        open_dataset("lip", tmp_path, "train")
    (tmp_path / "train_id.txt").write_text("\n", "utf-8")
    with pytest.raises(DataError, match="the list is empty"):
        open_dataset("lip", tmp_path, "train")


def test_unreadable_files(tmp_path: Path) -> None:
    make_ade20k(tmp_path)
    opened = open_dataset("ade20k", tmp_path, "train")
    picture, annotation = opened.files[1]
    picture.write_bytes(picture.read_bytes()[:40])
    with pytest.raises(DataError, match=r"ADE_train_00000002\.jpg.*not a picture"):
        opened[1]
    annotation = opened.files[2][1]
    annotation.write_bytes(annotation.read_bytes()[:60])
    with pytest.raises(DataError, match=r"ADE_train_00000003\.png.*not a label picture"):
        opened[2]
    annotation.unlink()
    with pytest.raises(DataError, match="there is no such label file"):
        opened[2]


def test_cut_off_jpegs(tmp_path: Path) -> None:
    make_lip(tmp_path)
    opened = open_dataset("lip", tmp_path, "train")
    picture = opened.files[0][0]
    content, image = picture.read_bytes(), opened[0][0]
    picture.write_bytes(content + b"a camera's own bytes")
    np.testing.assert_array_equal(opened[0][0], image)
    for share in (0.6, 0.95, 0.999):
        picture.write_bytes(content[: int(share * len(content))])
        assert cv2.imread(str(picture)) is not None  # OpenCV takes it
        with pytest.raises(DataError, match=rf"{picture.name}: the picture is cut off"):
            opened[0]


def test_unreadable_matrices(tmp_path: Path) -> None:
    from scipy.io import savemat

    make_cocostuff10k(tmp_path)
    opened = open_dataset("cocostuff10k", tmp_path, "train")
    annotation = opened.files[0][1]
    annotation.write_bytes(annotation.read_bytes()[:200])
    with pytest.raises(DataError, match="not a MATLAB file"):
        opened[0]
    savemat(annotation, {"T": np.zeros((3, 3))})
    with pytest.raises(DataError, match="no label matrix 'S'"):
        opened[0]
    savemat(annotation, {"S": np.full((61, 83), 0.5)})
    with pytest.raises(DataError, match="no whole numbers"):
        opened[0]


def test_sizes_that_differ(tmp_path: Path) -> None:
    make_ade20k(tmp_path)
    opened = open_dataset("ade20k", tmp_path, "train")
    image = cv2.imread(str(opened.files[0][0]))
    assert image is not None
    cv2.imwrite(str(opened.files[0][0]), image[:, 1:])
    with pytest.raises(DataError, match=r"00001\.jpg is 61x82 but .*00001\.png is 61x83"):
        opened[0]
    cv2.imwrite(str(opened.files[0][0]), np.rot90(image))
    with pytest.raises(DataError, match="EXIF"):
        opened[0]


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("ade20k", 151, r"0\.\.150"),
        ("cityscapes", 34, r"0\.\.33"),
        ("cocostuff10k", 183, r"0\.\.182, 255"),
        ("lip", 20, r"0\.\.19"),
    ],
)
def test_values_out_of_range_are_told_with_file_and_place(name: str, value: int, allowed: str, tmp_path: Path) -> None:
    stored = np.full((7, 9), 7, np.uint8)
    stored[5, 3] = value
    with pytest.raises(DataError, match=rf"some\.png: label value {value} at 1 of 63 .*row 5, column 3.*{allowed}"):
        label_values(name).apply(stored, Path("some.png"))


@pytest.mark.parametrize("name", DATASETS)
def test_every_byte_value_as_the_reference_maps_it(name: str) -> None:
    golden = np.load(GOLDEN / "golden_pipeline.npz")[f"labelmap_{name}"]
    values = label_values(name)
    seen = 0
    for byte in range(256):
        stored = np.array([[byte]], np.uint8)
        if byte in values.ids:
            assert values.apply(stored, Path("x")).item() == golden[byte]
            seen += 1
            continue
        # The fixtures send these to IGNORE (LIP: leave them); the reference itself raises, and so does this reader.
        assert golden[byte] == (byte if name == "lip" else IGNORE)
        with pytest.raises(DataError):
            values.apply(stored, Path("x"))
    assert seen == {"ade20k": 151, "cityscapes": 34, "cocostuff10k": 184, "lip": 20}[name]


def test_label_pictures_of_every_kind(tmp_path: Path) -> None:
    values = (np.arange(35).reshape(5, 7) % 4).astype(np.uint8)
    file = tmp_path / "labels.png"
    grey = Image.fromarray(values)
    for image in (grey, grey.convert("RGB"), Image.fromarray(values.astype(np.uint16))):
        image.save(file)
        np.testing.assert_array_equal(read_labels(file), values)
    paletted = Image.frombytes("P", (7, 5), values.tobytes())
    paletted.putpalette([9, 8, 7, 200, 100, 0, 0, 0, 255, 1, 2, 3])
    for bits in (2, 4, 8):
        paletted.save(file, bits=bits)
        np.testing.assert_array_equal(read_labels(file), values)
    Image.fromarray(values == 1).save(file)
    np.testing.assert_array_equal(read_labels(file), values == 1)
    Image.fromarray(np.dstack([values, values, values + 1])).save(file)
    with pytest.raises(DataError, match=r"one number per pixel.*RGB"):
        read_labels(file)


def test_packed_grey_pngs_keep_their_values(tmp_path: Path) -> None:
    """PNG optimisers store few classes in 2 or 4 bits; readers spread such values over a byte."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 4, 1, 2, 0, 0, 0, 0)  # width 4, height 1, 2 bits, grey
    row = bytes([0, 0b00_01_10_11])
    file = tmp_path / "packed.png"
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    )
    assert read_labels(file).tolist() == [[0, 1, 2, 3]]


def test_messages_list_few_values() -> None:
    with pytest.raises(DataError, match=r"label values 10, 11, 12, 13, 14, 15, 16, 17, … \(7 more\) at 15"):
        LabelValues({0: 0, 2: 1}).apply(np.arange(10, 25).reshape(3, 5), Path("x.png"))
