"""Tell the images that segmentation wrote from those to be segmented: a mark in the file, or names of both results."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from isnet_trt.files import open_regular

LABELS, OVERLAY = "_labels.png", "_overlay.png"
"""What follows the stem in the names of results."""
_HEADER = 33
"""Bytes of a PNG's signature and its first chunk, IHDR."""


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


_MARK = _chunk(b"tEXt", b"Software\0isnet_trt result")
"""A text chunk (W3C PNG 3rd edition, 11.3.3.2), the first after IHDR."""


def mark_png(content: bytes) -> bytes:
    """The PNG file ``content`` with the mark of a result."""
    return content[:_HEADER] + _MARK + content[_HEADER:]


def is_result(path: Path) -> bool:
    """Whether a file is a result by its mark, or lies beside the other result of its stem.

    Earlier versions wrote no mark, but always labels and overlay.
    """
    if path.suffix.lower() != ".png":
        return False
    try:
        with open_regular(path) as stream:
            marked = stream.read(_HEADER + len(_MARK)).endswith(_MARK)
    except OSError:  # reading the picture will say why
        return False
    return marked or _has_companion(path)


def _has_companion(path: Path) -> bool:
    for ending, other in ((LABELS, OVERLAY), (OVERLAY, LABELS)):
        if path.name.endswith(ending):
            return path.with_name(path.name.removesuffix(ending) + other).is_file()
    return False
