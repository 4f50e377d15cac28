"""The forms in which a segmentation is saved: their names, the files' endings, and the packages that they need."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass

from isnet_trt.errors import SettingsError, nearest, needs


@dataclass(frozen=True)
class Form:
    """A form.

    Attributes:
        suffix: of its files.
        content: what a file holds, in a line.
        module: what has to be imported to write it, beyond the runtime's packages.
        extra: what installs that.
    """

    suffix: str
    content: str
    module: str = ""
    extra: str = ""


FORMS = {
    "labels": Form(".png", "class ids, 8-bit grey (16-bit above 256 classes), at the picture's size"),
    "overlay": Form(".png", "the picture blended with the class colours, and a legend (see --overlay-format)"),
    "palette": Form(".png", "class ids; the PNG's palette has the class colours (up to 256 classes)"),
    "color": Form(".png", "class colours, RGBA"),
    "probabilities": Form(".npz", "probabilities (K, H, W) and class names, for numpy.load"),
    "rle": Form(".json", "COCO run lengths of each class, a COCO data set of one picture", "pycocotools.mask", "coco"),
    "polygons": Form(".json", "outlines of each class along the edges of pixels, with holes, as GeoJSON"),
    "geotiff": Form(".tif", "class ids with the georeference of the picture", "rasterio", "geo"),
}
OVERLAY_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
DEFAULT = ("labels", "overlay")


def parse_forms(text: str) -> tuple[str, ...]:
    """The names in a comma-separated list, each once; SettingsError names what is none and the nearest that is."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise SettingsError(f"no form is named; there are: {', '.join(FORMS)}")
    for name in names:
        check_form(name)
    return names


def check_form(name: str) -> None:
    """Raise SettingsError, which lists the forms and the nearest one, if ``name`` is none of them."""
    if name not in FORMS:
        raise SettingsError(f"form {name!r} is unknown; there are: {', '.join(FORMS)}{nearest(name.lower(), FORMS)}")


def check_packages(names: Iterable[str]) -> None:
    """Raise PackageMissing, which names the extra, if a form needs a package that is not installed."""
    for name in names:
        form = FORMS[name]
        if form.module:
            with needs(f"form {name}", form.extra):
                importlib.import_module(form.module)
