"""GeoTIFF label maps, with the georeference of the picture that was segmented."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import ImageError, needs
from isnet_trt.files import AnyPath
from isnet_trt.opencv import cv2
from isnet_trt.pictures.download import is_url
from isnet_trt.pictures.files import picture_bytes
from isnet_trt.pictures.label_maps import LabelMap, with_void
from isnet_trt.settings import Size, size_text


@dataclass(frozen=True)
class Georeference:
    """Where a raster of ``size`` (height, width) lies on the ground, in rasterio's types.

    Attributes:
        path: the file that it was read from.
        crs: the coordinate reference system, of ``gcps`` where there is no ``transform``; None if it has none.
        transform: affine map from (column, row) to coordinates; None if the picture has GCPs or RPCs only.
        gcps: ground control points.
        rpcs: rational polynomial coefficients of a satellite's camera; None if it has none.
        area_or_point: "Area" or "Point", what GDAL calls ``AREA_OR_POINT``; None if the file does not say.
    """

    path: str
    size: Size
    crs: Any
    transform: Any
    gcps: Sequence[Any]
    rpcs: Any
    area_or_point: str | None


def read_georeference(path: AnyPath) -> Georeference:
    """The georeference of a picture file: in the file, or in a world file or ``.aux.xml`` beside it.

    Raises:
        PackageMissing: rasterio is not installed.
        ImageError: the file has no georeference, is no raster that GDAL can read, or is turned by its EXIF orientation.
    """
    with needs("GeoTIFF", "geo"):
        import rasterio
    if is_url(os.fspath(path)):
        raise ImageError(f"{path}: geotiff needs the georeference of a file; download the picture first")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(Path(path).absolute()) as raster:
                transform = None if raster.transform.is_identity else raster.transform
                gcps, gcps_crs = raster.gcps
                crs = raster.crs if transform or not gcps else gcps_crs
                tags, size = raster.tags(), (raster.height, raster.width)
                rpcs = raster.rpcs
    except (rasterio.errors.RasterioError, UnicodeError) as error:
        raise ImageError(f"{path}: its georeference cannot be read ({error}); leave out geotiff") from None
    if transform is None and not gcps and rpcs is None:
        raise ImageError(
            f"{path} has no georeference (neither transform nor GCPs nor RPCs): leave out geotiff; "
            "labels has the same values"
        )
    if _is_turned(path):
        raise ImageError(
            f"{path}: its EXIF orientation turns the picture, but not its georeference; store the picture upright"
        )
    return Georeference(str(path), size, crs, transform, tuple(gcps), rpcs, tags.get("AREA_OR_POINT"))


def _is_turned(path: AnyPath) -> bool:
    """Whether decoding turns or mirrors the picture."""
    encoded = np.frombuffer(picture_bytes(path), np.uint8)
    upright = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE))
    stored = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION))
    return not np.array_equal(upright, stored)


def geotiff(labels: LabelMap, names: Sequence[str], palette: NDArray[np.uint8], georeference: Georeference) -> bytes:
    """A GeoTIFF file: class ids in one band, colours as its colour table (up to 256 classes).

    The file's NoData value is the largest of the type, unless that is a class. The names are in the band's tag
    ``class_names``, as a JSON list.

    Raises:
        PackageMissing: rasterio is not installed.
        ImageError: the label map has another size than the picture that the georeference was read from.
    """
    with needs("GeoTIFF", "geo"):
        import rasterio
        from rasterio.io import MemoryFile
    if labels.shape != georeference.size:
        raise ImageError(
            f"{georeference.path} is {size_text(georeference.size)}, the label map {size_text(labels.shape)}; "
            "pass the picture that was segmented"
        )
    ids = with_void(labels, len(names))
    nodata = int(np.iinfo(ids.dtype).max)
    place: dict[str, Any] = {"crs": georeference.crs}
    if georeference.transform is not None:
        place["transform"] = georeference.transform
    elif georeference.gcps:
        place["gcps"] = list(georeference.gcps)
    profile = {"driver": "GTiff", "count": 1, "dtype": ids.dtype.name, "compress": "deflate", **place}
    profile |= {"height": ids.shape[0], "width": ids.shape[1], "nodata": nodata if nodata >= len(names) else None}
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with memory.open(**profile) as raster:
            if georeference.rpcs is not None:
                raster.rpcs = georeference.rpcs
            # With "Point" GDAL would move control points by a pixel.
            if georeference.area_or_point and georeference.transform is not None:
                raster.update_tags(AREA_OR_POINT=georeference.area_or_point)
            raster.update_tags(1, class_names=json.dumps(list(names)))
            if ids.dtype == np.uint8:
                raster.write_colormap(1, {n: tuple(map(int, colour)) for n, colour in enumerate(palette)})
            raster.write(ids, 1)
        return bytes(memory.read())
