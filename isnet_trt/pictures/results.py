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
_PNG_MARK = png_chunk(b"tEXt", b"Software\0" + _NAME)
"""A text chunk (W3C PNG 3rd edition, 11.3.3.2), the first after IHDR."""
_ORIGIN = b"isnet_trt origin\0"
"""Keyword of the text chunk behind the mark that names what computed the result."""
ORIGIN_HEAD = 256
"""Bytes at the beginning of a PNG file within which its mark and its origin lie."""
_EXIF = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0131, 2, len(_NAME) + 1, 26, 0) + _NAME + b"\0"
"""Exif data of one entry, Software (TIFF 6.0, tag 305)."""
_HEAD, _TAIL = 128, 64
"""Bytes at the beginning and the end of a file within which its mark lies."""


def mark_png(content: bytes, origin: str = "") -> bytes:
    """The PNG file ``content`` with the mark of a result, and with its ``origin`` (ASCII, at most 100) if there is one.

    `origin_of` reads it back.
    """
    chunk = png_chunk(b"tEXt", _ORIGIN + origin.encode("ascii")) if origin else b""
    return content[:_HEADER] + _PNG_MARK + chunk + content[_HEADER:]


def origin_of(head: bytes) -> str | None:
    """The origin of a marked PNG file by its first `ORIGIN_HEAD` bytes: "" if it has none; None: no mark."""
    if head[_HEADER : _HEADER + len(_PNG_MARK)] != _PNG_MARK:
        return None
    chunk = head[_HEADER + len(_PNG_MARK) :]
    size = int.from_bytes(chunk[:4], "big")
    kind, data = chunk[4:8], chunk[8 : 8 + size]
    return (
        data.removeprefix(_ORIGIN).decode("ascii", "replace")
        if kind + data[: len(_ORIGIN)] == b"tEXt" + _ORIGIN
        else ""
    )


def mark_tiff(content: bytes) -> bytes:
    """The TIFF file ``content`` with the mark of a result behind what the file refers to."""
    return content + _NAME


def mark_jpeg(content: bytes) -> bytes:
    """The JPEG file ``content`` with the mark of a result: Exif data, as its first segment."""
    segment = b"Exif\0\0" + _EXIF
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + content[2:]


def mark_webp(content: bytes, width: int, height: int) -> bytes:
    """The WebP file ``content``, of one picture, with the mark of a result: Exif data (RFC 9649, 2.7)."""
    has_exif, sides = 0x08, (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    extended = b"VP8X" + struct.pack("<II", 10, has_exif) + sides
    exif = b"EXIF" + struct.pack("<I", len(_EXIF)) + _EXIF + b"\0" * (len(_EXIF) % 2)
    body = b"WEBP" + extended + content[12:] + exif
    return b"RIFF" + struct.pack("<I", len(body)) + body


def is_result(path: Path) -> bool:
    """Whether a file is a result by its mark, or lies beside the other result of its stem.

    Earlier versions wrote no mark, but always labels and overlay.
    """
    if path.suffix.lower() not in (".png", ".tif", ".jpg", ".jpeg", ".webp"):
        return False
    try:
        with open_regular(path) as stream:
            head = stream.read(_HEAD)
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL))
            marked = _NAME in head + stream.read()
    except OSError:  # reading the picture will say why
        return False
    return marked or _has_companion(path)


def _has_companion(path: Path) -> bool:
    for ending, other in ((LABELS, OVERLAY), (OVERLAY, LABELS)):
        if path.name.endswith(ending):
            return path.with_name(path.name.removesuffix(ending) + other).is_file()
    return False
