"""The result of a segmenter's call."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import ImageError, SettingsError
from isnet_trt.files import AnyPath, write_file
from isnet_trt.pictures.files import Image, encode_png, encode_result
from isnet_trt.pictures.formats import Order
from isnet_trt.pictures.forms import check_form
from isnet_trt.pictures.geotiff import Georeference, geotiff, read_georeference
from isnet_trt.pictures.interop import image_from
from isnet_trt.pictures.label_maps import class_shares, coco_dataset, color_mask, colours, palette_png, with_void
from isnet_trt.pictures.overlay import OverlayStyle, draw
from isnet_trt.pictures.polygons import feature_collection
from isnet_trt.pictures.results import mark_png, mark_tiff


@dataclass(frozen=True)
class Segmentation:
    """A label map and what belongs to it. Every array is the caller's own.

    A value of ``labels`` that is no class (255, as in labels of data sets) is void: it has no colour, no share, and no
    mask. Segmenters give none.

    Attributes:
        labels: class ids (H, W) at the source's size; uint8, or uint16 above 256 classes.
            Where they were written to GPU memory, the object that was passed as ``out``.
        names: class i is called ``names[i]``.
        palette: colours (K, 3), uint8 RGB.
        probabilities: (K, H, W) float32 where requested: the merged probabilities, or the softmax of merged logits.
        scores: (P, K) float32 at the chosen pixels: merged logits, or probabilities where those were merged.
        seconds: time spent by stage.
    """

    labels: NDArray[np.unsignedinteger]
    names: tuple[str, ...]
    palette: NDArray[np.uint8]
    probabilities: NDArray[np.float32] | None = None
    scores: NDArray[np.float32] | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def shares(self) -> dict[int, float]:
        """Class id -> share of the pixels (0..1), of the classes that occur, largest first."""
        return class_shares(self._host_labels, len(self.names))

    def colours(self) -> Image:
        """The label map in palette colours, uint8 (H, W, 3) RGB; void is black."""
        return colours(self._host_labels, self.palette)

    def overlay(
        self,
        image: Any,
        alpha: float = 0.5,
        legend: bool = True,
        *,
        order: Order = "rgb",
        outlines: bool = True,
        hatching: bool = True,
        side_by_side: bool = False,
    ) -> Image:
        """``image``, the one that was segmented, blended with the label colours, uint8 (H', W', 3) RGB.

        Args:
            image: any form that a call takes, but for GPU memory: an array, a path, encoded bytes, NV12, ….
            alpha: share of the colours, 0..1.
            legend: add colour, name and share of the classes that occur, on the right (at most half the width) or
                below (at most half the height); the largest first, "and 23 more" where not all fit, nothing where
                none does.
            order: of the channels of ``image``.
            outlines: draw the edges of regions one pixel wide, black or white, in the larger of the two classes.
            hatching: hatch a class whose colour is too close to that of a larger class, or to the image under it.
            side_by_side: put the image as it is on the left.

        Raises:
            ImageError: ``image`` has another size than the label map, is in GPU memory, or cannot be read.
            SettingsError: ``alpha`` is out of range.
        """
        style = OverlayStyle(alpha, legend, outlines, hatching, side_by_side)
        return draw(image_from(image, order).rgb(), self._host_labels, self.names, self.palette, style)

    def color_mask(self) -> NDArray[np.uint8]:
        """Palette colours with alpha, uint8 (H, W, 4) RGBA: alpha is 255, and all four channels 0 where void is."""
        return color_mask(self._host_labels, self.palette)

    def palette_png(self) -> bytes:
        """A PNG file with the class ids as pixels (8 bits) and the class colours as its palette.

        Void is index 255, black and transparent.

        Raises:
            SettingsError: there are more than 256 classes.
        """
        return palette_png(self._host_labels, self.palette)

    def coco_rle(self, file_name: str = "", image_id: int = 1) -> dict[str, Any]:
        """COCO run lengths of each class that occurs, as the data set of one picture in COCO's JSON layout.

        ``annotations`` has an entry for each class, the largest first: ``category_id`` (the class id, 0..K−1),
        ``segmentation`` (``size`` [H, W], ``counts`` as compressed text), ``area`` and ``bbox`` [x, y, width, height]
        in pixels. ``categories`` has all classes; ``file_name`` and ``image_id`` are those of ``images``.
        Source: the format of https://cocodataset.org/#format-data, encoded by pycocotools.

        Raises:
            PackageMissing: pycocotools is not installed (extra ``coco``).
        """
        return coco_dataset(self._host_labels, self.names, file_name, image_id)

    def polygons(self) -> dict[str, Any]:
        """Outlines of each class that occurs, as a GeoJSON feature collection in pixel coordinates.

        A feature is a class: a MultiPolygon, holes included, with ``class_id``, ``name``, ``color`` [R, G, B] and
        ``area`` in pixels as ``properties``. Pixel (row y, column x) is the square from [x, y] to [x + 1, y + 1];
        rasterised by pixel centres, as ``rasterio.features.rasterize`` does, the polygons are the label map exactly.
        Source: RFC 7946, whose coordinates would be degrees.
        """
        return feature_collection(self._host_labels, self.names, self.palette)

    def save(
        self,
        path: AnyPath,
        form: str = "labels",
        *,
        image: Any = None,
        georeference: Georeference | AnyPath | None = None,
        file_name: str = "",
        dtype: Literal["float32", "float16"] = "float32",
        alpha: float = 0.5,
        side_by_side: bool = False,
    ) -> None:
        """Write a file in one of the forms of ``predict --save``, as a whole or not at all.

        Args:
            path: the file; one that exists is replaced.
            form: "labels", "overlay", "palette", "color", "probabilities", "rle", "polygons" or "geotiff".
            image: for "overlay" the picture that was segmented, as `overlay` takes it; arrays in RGB.
            georeference: for "geotiff" the file of the picture that was segmented, or what
                `isnet_trt.pictures.geotiff.read_georeference` read from it.
            file_name: of the picture, which "rle" stores.
            dtype: of "probabilities".
            alpha: of "overlay", as are ``side_by_side`` and the format: JPEG or WebP if ``path`` ends in .jpg, .jpeg
                or .webp, and PNG otherwise.
            side_by_side: see `overlay`.

        Raises:
            SettingsError: ``form`` is unknown, lacks its argument, or cannot hold this segmentation.
            ImageError: the file cannot be written, or the argument is of another picture.
            PackageMissing: a package that the form needs is not installed; the message names the extra.
        """
        check_form(form)
        encode: dict[str, Callable[[], bytes | Callable[[BinaryIO], object]]] = {
            "labels": lambda: mark_png(encode_png(with_void(self._host_labels, len(self.names)))),
            "overlay": lambda: self._overlay_file(image, alpha, side_by_side, Path(path).suffix),
            "palette": lambda: mark_png(self.palette_png()),
            "color": lambda: mark_png(encode_png(self.color_mask())),
            "probabilities": lambda: self._npz(dtype),
            "rle": lambda: _json(self.coco_rle(file_name)),
            "polygons": lambda: _json(self.polygons()),
            "geotiff": lambda: self._geotiff(georeference),
        }
        write_file(Path(path), encode[form](), ImageError)

    @property
    def _host_labels(self) -> NDArray[np.unsignedinteger]:
        """The label map; SettingsError if it is no array in host memory."""
        if not isinstance(self.labels, np.ndarray):
            raise SettingsError("the label map is in the GPU memory that was passed as out: copy it to a numpy array")
        return self.labels

    def _overlay_file(self, image: Any, alpha: float, side_by_side: bool, suffix: str) -> bytes:
        if image is None:
            raise _missing("overlay", "image")
        return encode_result(self.overlay(image, alpha, side_by_side=side_by_side), suffix)

    def _npz(self, dtype: str) -> Callable[[BinaryIO], object]:
        if self.probabilities is None:
            raise SettingsError("there are no probabilities: pass probabilities=True to the segmenter")
        if dtype not in ("float32", "float16"):
            raise SettingsError(f"probabilities are saved as float32 or float16, not as {dtype!r}")
        arrays = {"probabilities": self.probabilities.astype(dtype, copy=False), "names": np.array(self.names)}
        return lambda stream: np.savez(stream, **arrays)  # type: ignore[arg-type]  # it has one keyword of its own

    def _geotiff(self, source: Georeference | AnyPath | None) -> bytes:
        if source is None:
            raise _missing("geotiff", "georeference")
        georeference = source if isinstance(source, Georeference) else read_georeference(source)
        return mark_tiff(geotiff(self._host_labels, self.names, self.palette, georeference))


def _missing(form: str, argument: str) -> SettingsError:
    return SettingsError(f"form {form!r} needs the argument {argument}: the picture that was segmented")


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode("ascii")
