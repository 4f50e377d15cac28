"""What the pages take for granted: each file and folder that their commands name, made small.

A page's commands run in a copy of the checkout. Before a command runs, every name in it that is listed here and is not
there yet is made: checkpoints are the demo's (a few megabytes, recognised like any other), bundles hold a tiny network
with the classes of their data set, pictures are drawn scenes of 160×256.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import foreign_networks
import miniature
import onnx
import tiny_model
import yaml
from documented import ROOT, blocks, python

from isnet_trt.recipes import DEMO_LABELS, recipe
from isnet_trt.settings import Labels
from isnet_trt.training.scenes import draw_scene

Maker = Callable[[Path], object]
FORMS = (
    "labels.png",
    "palette.png",
    "color.png",
    "probabilities.npz",
    "rle.json",
    "polygons.json",
    "geotiff.tif",
)
SIZE = (160, 256)
TILES = Labels(("background", "tile", "crack"), ((0, 0, 0), (200, 80, 80), (80, 200, 80)), ())


def checkpoint(path: Path) -> None:
    """The demo's checkpoint under the page's name."""
    shutil.copyfile(ROOT / "training" / "assets" / "isnet_demo.pth", path)


def bundle(labels: Labels) -> Maker:
    """A bundle with these classes around a tiny network."""
    return lambda path: tiny_model.write_bundle(path, labels)


def photo(path: Path, seed: int = 0) -> None:
    """A drawn scene, in the format of the name's suffix."""
    assert cv2.imwrite(str(path), draw_scene(seed, *SIZE).image[..., ::-1])


def photos(path: Path) -> None:
    """A folder of two, each with a world file that says where on the ground it lies."""
    path.mkdir(parents=True)
    for seed in range(2):
        photo(path / f"{seed}.jpg", seed)
        (path / f"{seed}.jgw").write_text("0.5\n0\n0\n-0.5\n500000\n5300000\n")


def video(path: Path) -> None:
    """Three frames."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 5, SIZE[::-1])
    for seed in range(3):
        writer.write(draw_scene(seed, *SIZE).image[..., ::-1])
    writer.release()
    assert path.stat().st_size > 0


def labelled(folder: Path, classes: int) -> None:
    """``train`` and ``val``, each with scenes in ``photos`` and their labels, up to ``classes``, in ``masks``."""
    for seed, split in enumerate(("train", "train", "val")):
        scene = draw_scene(seed, *SIZE)
        files = {"photos": scene.image[..., ::-1], "masks": scene.labels % classes}
        for kind, values in files.items():
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(folder / split / kind / f"{seed}.png"), values)


def tiles(path: Path) -> None:
    """The YAML of docs/fine-tuning.md with the demo's network and small crops, so that training takes seconds."""
    page = (ROOT / "docs" / "fine-tuning.md").read_text("utf-8")
    described = yaml.safe_load(next(block.text for block in blocks(page) if block.language == "yaml"))
    assert described["name"] == path.stem
    small = {"like": "isnet_demo", "crop": list(SIZE), "size": list(reversed(SIZE))}
    path.write_text(yaml.safe_dump(described | small), "utf-8")
    labelled(path.parent, len(described["classes"]))


def mine(path: Path) -> None:
    """The recipe of docs/any-network.md."""
    page = (ROOT / "docs" / "any-network.md").read_text("utf-8")
    path.write_text(next(block.text for block in blocks(page) if block.language == "yaml"), "utf-8")


def any_network(path: Path) -> None:
    """An ONNX graph with the classes of that recipe, which ends with a resize."""
    page = (ROOT / "docs" / "any-network.md").read_text("utf-8")
    described = yaml.safe_load(next(block.text for block in blocks(page) if block.language == "yaml"))
    onnx.save(foreign_networks.resized(classes=len(described["classes"])), path)


def mine_built(path: Path) -> None:
    """The bundle that the page builds."""
    supply(["model.onnx", "mine.yaml"], path.parents[1])
    from isnet_trt.export import EngineOptions, OnnxFile, build

    files = (path.parents[1] / name for name in ("model.onnx", "mine.yaml"))
    build(OnnxFile(*files), path, engine=EngineOptions("onnxruntime"))


def module(path: Path) -> None:
    """The Python file of docs/any-network.md that has the factory ``path``, such as ``mynet:build``."""
    page = (ROOT / "docs" / "any-network.md").read_text("utf-8")
    package, _, factory = path.name.partition(":")
    code = next(code for code in python(page) if f"def {factory}():" in code)
    path.with_name(f"{package}.py").write_text(code, "utf-8")


def cityscapes(path: Path) -> None:
    """The data set in miniature, with pictures of the part that has no labels."""
    miniature.make_cityscapes(path)
    shutil.copytree(path / "leftImg8bit" / "val", path / "leftImg8bit" / "test")


def saved_form(path: Path) -> None:
    """What `predict --save` writes for a picture with a georeference, in the form of the file's name."""
    from isnet_trt import Segmenter

    folder, form = path.parents[1], path.stem.rpartition("_")[2]
    supply(["bundles/ade", "pictures"], folder)
    picture = folder / "pictures" / "0.jpg"
    with Segmenter.open(folder / "bundles" / "ade", threads=1) as segmenter:
        segmentation = segmenter(picture, probabilities=form == "probabilities")
    segmentation.save(path, form, georeference=picture if form == "geotiff" else None, file_name=picture.name)


def interpreter(path: Path, arguments: str = "") -> None:
    """A program that starts the interpreter of the tests with the arguments given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
    path.chmod(0o755)


def environment_of_make(path: Path) -> None:
    """What `make` finds done: the environment of the tests by links, and the stamps of what was installed."""
    path.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        if (Path(sys.prefix) / name).exists():
            (path / name).symlink_to(Path(sys.prefix) / name)
    for stamp in (".torch", ".demo", ".test"):
        (path / stamp).touch()


SUPPLIES: dict[str, Maker] = {
    "model.pth": checkpoint,
    "isnet_resnet50os8_ade20k.pth": checkpoint,
    "bundle": bundle(DEMO_LABELS),
    "BUNDLE": bundle(DEMO_LABELS),
    "demo/bundle": bundle(DEMO_LABELS),
    "bundles/ade": bundle(recipe("isnet_resnet50os8_ade20k").labels),
    "bundles/city": bundle(recipe("isnet_resnet50os8_cityscapes").labels),
    "bundles/half": bundle(recipe("isnet_resnet50os8_ade20k").labels),
    "bundles/tiles": bundle(TILES),
    "mine.yaml": mine,
    "model.onnx": any_network,
    "bundles/mine": mine_built,
    "mynet:build": module,
    "pictures": photos,
    "street": photos,
    "photo.jpg": photo,
    "demo/scene.png": photo,
    "picture.ppm": photo,
    "in.mp4": video,
    "tiles.yaml": tiles,
    "train/photos": lambda path: labelled(path.parents[1], TILES.count),
    "data/ADE20k": miniature.make_ade20k,
    "data/cityscapes": cityscapes,
    **{f"results/scene_{name}": saved_form for name in FORMS},
    ".venv": environment_of_make,
}
"""Name on a page → what makes it. Folders are listed without the slash at their end; `/data` is `data` in the copy."""

NAMES = {
    "bundle": "bundle = 'bundle'",
    "photo": "photo = 'photo.jpg'",
    "image": "import cv2\nimage = cv2.imread('photo.jpg')[..., ::-1].copy()",
    "segmenter": """
from isnet_trt import ImageError, Segmenter
segmenter = Segmenter.open('bundles/ade')
segmenter('photo.jpg')
try:
    segmenter(b'no picture')
except ImageError:
    pass
segmenters = [segmenter]
""",
}
"""Variable that a page's Python code uses before it sets it → statements that set it."""


def supply(names: list[str], folder: Path) -> None:
    """Make what is listed of ``names`` and not there."""
    for name in dict.fromkeys(name.rstrip("/") for name in names):
        path = folder / name
        if name in SUPPLIES and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            SUPPLIES[name](path)
