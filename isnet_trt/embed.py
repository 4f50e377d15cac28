"""The Python side of ``isnet_trt/c_api``: functions of numbers and byte strings, which C calls through `call`.

C holds no Python object but `call`: handles are numbers that are never used twice, so that a closed one is recognised.
"""

from __future__ import annotations

import atexit
import itertools
import os
import traceback
from collections.abc import Callable
from typing import Any

from isnet_trt.errors import (
    BundleError,
    EngineError,
    EngineUnavailable,
    ImageError,
    IsnetError,
    OutOfMemory,
    PackageMissing,
    SettingsError,
    is_out_of_memory,
)
from isnet_trt.merging.merge import label_type
from isnet_trt.opencv import cv2
from isnet_trt.pictures.files import LIMIT_VARIABLE, max_pixels
from isnet_trt.pictures.raw import RawImage, RawLabels, RawPlane
from isnet_trt.pictures.yuv import I420, NV12
from isnet_trt.runtime.segmenter import Segmenter

ABI = 1
"""``ISNET_ABI_VERSION`` of isnet.h."""


class ClosedHandle(IsnetError):
    """A handle was closed, or no `open_segmenter` has returned it."""


class InheritedHandle(EngineError):
    """A handle was opened in the process from which this one was forked."""


STATUSES: tuple[tuple[type[BaseException], int], ...] = (
    (OutOfMemory, -7),
    (ClosedHandle, -8),
    (InheritedHandle, -13),
    (SettingsError, -2),
    (ImageError, -3),
    (BundleError, -4),
    (EngineUnavailable, -5),
    (EngineError, -6),
    (PackageMissing, -10),
    (KeyboardInterrupt, -14),
)
"""Exception -> ``isnet_status`` of isnet.h; the first that fits."""
NO_MEMORY, FAILED = -7, -1
_TELEMETRY = "ORT_DISABLE_TELEMETRY"  # set by isnet_trt
_FIRST = 0x1501
_open: dict[int, Segmenter] = {}
_engines: set[str] = set()
_inherited: dict[int, Segmenter] = {}
"""Segmenters of the parent in a forked child: kept, since destroying one would wait for threads of the parent."""
_numbers = itertools.count(_FIRST, 2)  # odd: no pointer to an object is taken for a handle


def call(function: str, *arguments: Any) -> tuple[int, bytes, Any]:
    """Call a function of this module; return (status, message, result). Nothing is raised; bytes are decoded."""
    try:
        values = [os.fsdecode(value) if isinstance(value, bytes) else value for value in arguments]
        return 0, b"", globals()[function](*values)
    except BaseException as error:
        return _status(error), _message(error).encode("utf-8", "backslashreplace"), None


def _status(error: BaseException) -> int:
    known = next((status for kind, status in STATUSES if isinstance(error, kind)), FAILED)
    return NO_MEMORY if known == FAILED and is_out_of_memory(error) else known


def _message(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"
    if _status(error) != FAILED:
        return text
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{text} ({last.filename}:{last.lineno}); this is a bug, please report it"


def attach(at_end: Callable[[], None], in_child: Callable[[], None], environment: dict[str, str] | None) -> None:
    """Let Python call ``at_end`` before it ends, and ``in_child`` in children that it forks.

    ``environment`` has the process's variables from before this module was imported, where they are to stay: the
    package of OpenCV sets LD_LIBRARY_PATH and paths of its own Qt, which would reach the host's children and windows.
    """
    if environment is not None:
        cv2.getVersionString()  # imports OpenCV
        _restore(environment | {_TELEMETRY: os.environ[_TELEMETRY]})
    atexit.register(at_end)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=in_child)


def _restore(environment: dict[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def open_segmenter(
    bundle: str, preset: str | None, engine: str | None, device: str | None, threads: int
) -> tuple[int, bool]:
    """`Segmenter.open` with its errors; ``threads`` 0 takes all cores.

    Returns the handle, and whether an engine library was loaded for it.
    """
    segmenter = Segmenter.open(
        bundle, engine=engine, preset=preset or "default", threads=_threads(threads), device=device or "auto"
    )
    handle = next(_numbers)
    _open[handle] = segmenter
    new_library = segmenter.about.engine not in _engines
    _engines.add(segmenter.about.engine)
    return handle, new_library


def _threads(threads: int) -> int | None:
    if not 0 <= threads <= 1024:
        raise SettingsError(f"threads {threads} must be 0 (all cores) to 1024")
    return threads or None


def _segmenter(handle: int) -> Segmenter:
    if handle in _inherited:
        raise InheritedHandle(f"handle {handle:#x} was opened in the parent of process {os.getpid()}; open one here")
    try:
        return _open[handle]
    except KeyError:
        raise ClosedHandle(
            "the handle is a NULL pointer; did isnet_open fail?"
            if handle == 0
            else f"handle {handle:#x} is not open: it was closed, or is no handle of isnet_open"
        ) from None


def close(handle: int) -> None:
    """Close a segmenter, after a call of it that is running; calls that wait raise ClosedHandle."""
    segmenter = _segmenter(handle)
    del _open[handle]
    segmenter.close()


def label_bytes(handle: int) -> int:
    """Bytes of one label: 1, or 2 above 256 classes."""
    return label_type(_segmenter(handle).labels.count)(0).itemsize


def describe(handle: int) -> tuple[int, int, bytes, bytes, bytes, bytes, bytes, bytes]:
    """The fields of ``isnet_description``."""
    segmenter = _segmenter(handle)
    about = segmenter.about
    texts = (about.engine, about.device, about.recipe, about.precision, about.preset, segmenter.description)
    engine, device, recipe, precision, preset, text = map(_bytes, texts)
    return label_bytes(handle), segmenter.labels.count, engine, device, recipe, precision, preset, text


def describe_class(handle: int, label: int) -> tuple[bytes, int, int, int]:
    """Name and colour (red, green, blue) of one class."""
    labels = _segmenter(handle).labels
    if label >= labels.count:
        raise SettingsError(f"there is no class {label}: the bundle has {labels.count}, counted from 0")
    return _bytes(labels.names[label]), *labels.palette[label]


def _bytes(text: object) -> bytes:
    return str(text).encode("utf-8", "backslashreplace").replace(b"\0", b"?")


def segment(
    handle: int,
    planes: tuple[int, int, int],
    pitches: tuple[int, int, int],
    height: int,
    width: int,
    pixel_format: str | None,
    device: str | None,
    matrix: str | None,
    value_range: str | None,
    labels: int,
    labels_pitch: int,
    labels_device: str | None,
    stream: int,
    preset: str | None,
) -> None:
    """Segment an image, described as ``isnet_image`` does, into ``labels``, (height, width) of `label_bytes` bytes.

    ``stream`` is the caller's CUDA stream, 0 for none.

    Raises:
        IsnetError: as a call of `Segmenter`, or the handle is not open.
    """
    segmenter = _segmenter(handle)
    if height > 0 and width > 0 and height * width > max_pixels():
        raise ImageError(f"an image of {height} x {width} pixels is larger than {LIMIT_VARIABLE} = {max_pixels()}")
    yuv = {"matrix": matrix or "bt601", "range": value_range or "limited"}
    image = _source(planes, pitches, height, width, pixel_format or "", device or "cpu", yuv)
    dtype = f"uint{8 * label_bytes(handle)}"
    out = RawLabels(labels, height, width, labels_pitch or None, device=labels_device or "cpu", dtype=dtype)
    try:
        segmenter(image, out=out, stream=stream or None, inference=preset)
    except EngineError:
        _segmenter(handle)  # raises if another thread has closed it while this call waited
        raise


def _source(
    planes: tuple[int, int, int],
    pitches: tuple[int, int, int],
    height: int,
    width: int,
    pixel_format: str,
    device: str,
    yuv: dict[str, Any],
) -> RawImage | NV12 | I420:
    def plane(index: int, rows: int, columns: int) -> RawPlane:
        return RawPlane(planes[index], rows, columns, pitches[index] or None, device=device)

    if pixel_format not in ("nv12", "i420"):
        order: Any = pixel_format
        return RawImage(planes[0], height, width, pitches[0] or None, order, device=device)
    whole = not any(planes[1:])
    first = plane(0, height * 3 // 2 if whole else height, width)
    if pixel_format == "nv12":
        return NV12(first, None if whole else plane(1, height // 2, width), **yuv)
    u, v = (None, None) if whole else (plane(index, height // 2, width // 2) for index in (1, 2))
    return I420(first, u, v, **yuv)


def _in_child() -> None:
    _inherited.update(_open)
    _open.clear()


@atexit.register
def _close_all() -> None:
    """Close what C left open, after the hooks of `attach`, which were registered later, have ended all calls."""
    for handle in list(_open):
        close(handle)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
