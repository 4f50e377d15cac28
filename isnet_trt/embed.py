"""The entry for C code that embeds Python: functions of numbers and strings, by position.

``examples/embed/isnet.c`` is written against this module; `docs/embedding.md` says what holds for the pointers.
"""

from __future__ import annotations

from isnet_trt.merging.merge import label_type
from isnet_trt.pictures.formats import Chroma, Order
from isnet_trt.pictures.raw import RawImage, RawLabels, RawPlane
from isnet_trt.pictures.yuv import I420, NV12
from isnet_trt.runtime.segmenter import Segmenter


def open_segmenter(
    bundle: str, preset: str = "default", engine: str | None = None, threads: int = 0, device: str = "auto"
) -> Segmenter:
    """`Segmenter.open` by position, with the same errors; ``threads`` 0 takes all cores."""
    return Segmenter.open(bundle, engine=engine, preset=preset, threads=threads or None, device=device)


def label_bytes(segmenter: Segmenter) -> int:
    """Bytes of one label: 1, or 2 above 256 classes."""
    return label_type(segmenter.labels.count)(0).itemsize


def segment(
    segmenter: Segmenter,
    image: int,
    height: int,
    width: int,
    pitch: int,
    order: Order | Chroma,
    labels: int,
    labels_pitch: int,
    device: str = "cpu",
    stream: int | None = None,
) -> None:
    """Segment the picture at ``image``, uint8 (height, width, channels of ``order``), into ``labels``.

    With ``order`` "nv12" or "i420" all planes lie there, Y above U and V; see `isnet_trt.NV12` and `isnet_trt.I420`.
    Both are addresses on ``device`` ("cpu", "cuda:N"); pitches are bytes from row to row, 0 for rows without padding.
    ``labels`` takes (height, width) numbers of `label_bytes` bytes. ``stream`` is the caller's CUDA stream, for
    engines on a GPU.

    Raises:
        IsnetError: as a call of `Segmenter`.
    """
    dtype = f"uint{8 * label_bytes(segmenter)}"
    segmenter(
        _source(image, height, width, pitch or None, order, device),
        out=RawLabels(labels, height, width, labels_pitch or None, dtype, device=device),
        stream=stream,
    )


def _source(
    image: int, height: int, width: int, pitch: int | None, order: Order | Chroma, device: str
) -> RawImage | NV12 | I420:
    if order == "nv12":
        return NV12(RawPlane(image, height * 3 // 2, width, pitch, device=device))
    if order == "i420":
        return I420(RawPlane(image, height * 3 // 2, width, pitch, device=device))
    return RawImage(image, height, width, pitch, order, device=device)
