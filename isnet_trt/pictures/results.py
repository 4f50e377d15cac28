"""Tell the images that segmentation wrote from those to be segmented: a mark in the file, or names of both results."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

from isnet_trt.files import open_regular

LABELS, OVERLAY = "_labels.png", "_overlay.png"
"""What follows the stem in the names of results."""
_HEADER = 33
"""Bytes of a PNG's signature and its first chunk, IHDR."""


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


_NAME = b"isnet_trt result"
_MARK = png_chunk(b"tEXt", b"Software\0" + _NAME)
"""A text chunk (W3C PNG 3rd edition, 11.3.3.2), the first after IHDR."""


def mark_png(content: bytes) -> bytes:
    """The PNG file ``content`` with the mark of a result."""
    return content[:_HEADER] + _MARK + content[_HEADER:]


def mark_tiff(content: bytes) -> bytes:
    """The TIFF file ``content`` with the mark of a result behind what the file refers to."""
    return content + _NAME


def is_result(path: Path) -> bool:
    """Whether a file is a result by its mark, or lies beside the other result of its stem.

    Earlier versions wrote no mark, but always labels and overlay.
    """
    if path.suffix.lower() not in (".png", ".tif"):
        return False
    try:
        with open_regular(path) as stream:
            if path.suffix.lower() == ".tif":
                stream.seek(max(0, stream.seek(0, os.SEEK_END) - len(_NAME)))
                return stream.read() == _NAME
            marked = stream.read(_HEADER + len(_MARK)).endswith(_MARK)
    except OSError:  # reading the picture will say why
        return False
    return marked or _has_companion(path)


def _has_companion(path: Path) -> bool:
    for ending, other in ((LABELS, OVERLAY), (OVERLAY, LABELS)):
        if path.name.endswith(ending):
            return path.with_name(path.name.removesuffix(ending) + other).is_file()
    return False
