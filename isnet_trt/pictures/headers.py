"""What a picture file says of itself, read before anything is decoded: width and height, whether a JPEG has its end.

Sources: JPEG, ITU-T T.81 annex B; PNG, W3C PNG 3rd edition, 11.2.1; TIFF 6.0, section 2, and BigTIFF; WebP, RFC 9649;
BMP, Windows BITMAPINFOHEADER; GIF89a, section 18; Netpbm; JPEG 2000, ITU-T T.800 annex A.5.1; AVIF, ISO/IEC 23008-12
(property ``ispe``); Radiance HDR; Sun raster.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator

Dimensions = tuple[int, int]
"""(width, height) in pixels."""

_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))
"""JPEG markers without a length: TEM, RST0 to RST7 (between the parts of a scan) and SOI."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG, _END = b"\xff\xd8\xff", 0xD9

_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT, _EXTRA_SAMPLES = 256, 257, 322, 323, 338
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
"""TIFF types of whole numbers: BYTE, SHORT, LONG, LONG8 of BigTIFF."""
_ASSOCIATED, _UNASSOCIATED = 1, 2


def dimensions(content: bytes) -> Dimensions | None:
    """The size that a decoder will allocate memory for; None if the header is damaged or of an unknown format."""
    for magic, read in _READERS:
        if re.match(magic, content, re.DOTALL):
            try:
                return read(content)
            except (struct.error, LookupError, ValueError):
                return None
    return None


def is_cut_short(content: bytes) -> bool:
    """Whether the end mark of a JPEG is missing; what follows the mark is not looked at. False for other formats.

    Decoders fill what is missing of a JPEG with grey; they refuse the other formats themselves.
    """
    return content.startswith(_JPEG) and all(marker != _END for marker, _ in _jpeg_markers(content))


def _jpeg_markers(content: bytes) -> Iterator[tuple[int, int]]:
    """The markers up to the end mark and where each one's data begin; those of an embedded thumbnail are skipped."""
    position = 0
    while match := _MARKER.search(content, position):
        marker, position = match[1][0], match.end()
        yield marker, position
        if marker == _END:
            return
        if marker not in _ALONE:
            position += int.from_bytes(content[position : position + 2], "big")


def _jpeg(content: bytes) -> Dimensions | None:
    for marker, position in _jpeg_markers(content):
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", content, position + 3)
            return width, height
    return None


def _bmp(content: bytes) -> Dimensions:
    (header,) = struct.unpack_from("<I", content, 14)
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", content, 18)
    return abs(width), abs(height)  # a negative height: rows from the top


def _webp(content: bytes) -> Dimensions | None:
    chunk = content[12:16]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", content, 26)
    return width & 0x3FFF, height & 0x3FFF


def _jpeg2000(content: bytes) -> Dimensions:
    width, height, left, top = struct.unpack_from(">4I", content, content.index(b"\xff\x4f\xff\x51") + 8)
    return width - left, height - top


def _avif(content: bytes) -> Dimensions:
    # One property for each item: the picture, its tiles, alpha and thumbnail.
    return _largest(*re.findall(rb"ispe\0{4}(.{4})(.{4})", content, re.DOTALL))


def _largest(*sizes: tuple[bytes, bytes]) -> Dimensions:
    numbers = [(int.from_bytes(width, "big"), int.from_bytes(height, "big")) for width, height in sizes]
    return max(numbers, key=lambda size: size[0] * size[1])


def _fixed(layout: str, offset: int) -> Callable[[bytes], Dimensions]:
    """A reader of width and height at ``offset``."""

    def read(content: bytes) -> Dimensions:
        width, height = struct.unpack_from(layout, content, offset)
        return width, height

    return read


def _text(pattern: bytes) -> Callable[[bytes], Dimensions | None]:
    """A reader of a header in ASCII; ``pattern`` has the groups ``w`` and ``h``."""
    compiled = re.compile(pattern)

    def read(content: bytes) -> Dimensions | None:
        match = compiled.search(content)
        return (int(match["w"]), int(match["h"])) if match else None

    return read


class _Tiff:
    """The first directory of a TIFF: the integers of its entries, and where each one's first value lies."""

    def __init__(self, content: bytes) -> None:
        self.order = "<" if content.startswith(b"I") else ">"
        (version,) = struct.unpack_from(self.order + "H", content, 2)
        big = version == 43
        address, count, entry, inline = ("Q", "Q", 20, 12) if big else ("I", "H", 12, 8)
        (offset,) = struct.unpack_from(self.order + address, content, 8 if big else 4)
        (entries,) = struct.unpack_from(self.order + count, content, offset)
        self.values: dict[int, tuple[int, int]] = {}
        offset += struct.calcsize(count)
        # No reader takes more than 65,535 entries, and what lies behind the end of the file raises an error.
        for start in range(offset, offset + entry * min(entries, 65535), entry):
            tag, kind = struct.unpack_from(self.order + "HH", content, start)
            (number,) = struct.unpack_from(self.order + address, content, start + 4)
            if kind not in _INTEGERS or not number:
                continue
            position = start + inline
            if number * struct.calcsize(_INTEGERS[kind]) > struct.calcsize(address):
                (position,) = struct.unpack_from(self.order + address, content, position)
            (value,) = struct.unpack_from(self.order + _INTEGERS[kind], content, position)
            self.values.setdefault(tag, (value, position))

    def value(self, tag: int) -> int:
        return self.values.get(tag, (0, 0))[0]


def _tiff(content: bytes) -> Dimensions:
    tags = _Tiff(content)
    sizes = (
        (tags.value(_WIDTH), tags.value(_HEIGHT)),
        (tags.value(_TILE_WIDTH), tags.value(_TILE_HEIGHT)),  # a tile is decoded as a whole
    )
    return max(sizes, key=lambda size: size[0] * size[1])


def with_plain_colours(content: bytes) -> bytes:
    """A TIFF whose colours a decoder leaves as they are stored; any other file unchanged.

    libtiff multiplies colours by alpha where the tag ExtraSamples calls it unassociated; PNG, WebP and JPEG 2000 hold
    such alpha too, and OpenCV drops it from them without touching the colours.
    """
    if not re.match(_TIFF, content, re.DOTALL):
        return content
    try:
        tags = _Tiff(content)
        value, position = tags.values[_EXTRA_SAMPLES]
    except (struct.error, LookupError):
        return content
    if value != _UNASSOCIATED:
        return content
    patched = bytearray(content)
    struct.pack_into(tags.order + "H", patched, position, _ASSOCIATED)
    return bytes(patched)


_TIFF = rb"II[*+]\0|MM\0[*+]"
_SPACE = rb"(?:\s|#[^\n]*\n)+"
_READERS: tuple[tuple[bytes, Callable[[bytes], Dimensions | None]], ...] = (
    (_JPEG, _jpeg),
    (rb"\x89PNG", _fixed(">II", 16)),
    (_TIFF, _tiff),
    (rb"RIFF....WEBP", _webp),
    (rb"BM", _bmp),
    (rb"GIF8", _fixed("<HH", 6)),
    (rb"P7", _text(rb"\sWIDTH\s+(?P<w>\d{1,12})\s(?:.*\s)??HEIGHT\s+(?P<h>\d{1,12})\s")),
    (rb"P[1-6Ff]", _text(rb"^P." + _SPACE + rb"(?P<w>\d{1,12})" + _SPACE + rb"(?P<h>\d{1,12})\s")),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", _jpeg2000),
    (rb"....ftyp", _avif),
    (rb"#\?R", _text(rb"\n-Y (?P<h>\d{1,12}) \+X (?P<w>\d{1,12})\n")),
    (rb"\x59\xa6\x6a\x95", _fixed(">II", 4)),
)
