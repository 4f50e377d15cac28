"""What a picture file says of itself, read before anything is decoded: width and height, and whether it is whole.

Sources: JPEG, ITU-T T.81 annex B; PNG, W3C PNG 3rd edition, 11.2.1; TIFF 6.0, section 2, and BigTIFF; WebP, RFC 9649;
BMP, Windows BITMAPINFOHEADER; GIF89a, section 18; Netpbm; JPEG 2000, ITU-T T.800 annexes A.5.1 and I; AVIF, ISO/IEC
23008-12 (property ``ispe``); Radiance HDR; Sun raster.
"""

from __future__ import annotations

import contextlib
import re
import struct
import zlib
from collections.abc import Callable, Iterable

from isnet_trt.pictures import jpeg

Dimensions = tuple[int, int]
"""(width, height) in pixels."""

_PNG = b"\x89PNG\r\n\x1a\n"
_CODESTREAM = b"\xff\x4f\xff\x51"
"""The first two markers of JPEG 2000."""

_TIFF = rb"II[*+]\0|MM\0[*+]"
_TAGS = _WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT, _EXTRA_SAMPLES = 256, 257, 322, 323, 338
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
"""TIFF types of whole numbers: BYTE, SHORT, LONG, LONG8 of BigTIFF."""
_ASSOCIATED, _UNASSOCIATED = 1, 2

_COMPRESSED = rb"RIFF....WEBP|\0\0\0\x0cjP  |\xff\x4f\xff\x51"
_CODESTREAM_END = b"\xff\xd9"
"""EOC of JPEG 2000 (ITU-T T.800, A.4.4)."""
_MOST_ZEROS = 8
"""The zeros at the end of such a file are no more than an eighth: a WebP of one colour has 5 %."""

_DAMAGED = (struct.error, LookupError, ValueError, OverflowError)
"""What reading numbers beyond the end of a file raises, or offsets of more than 63 bits."""


def dimensions(content: bytes) -> Dimensions | None:
    """The size that a decoder will allocate memory for; None if the header is damaged or of an unknown format."""
    for magic, read in _READERS:
        if re.match(magic, content, re.DOTALL):
            try:
                return read(content)
            except _DAMAGED:
                return None
    return None


def fault(content: bytes) -> str:
    """Why a picture must not be decoded: its end is missing or zeros, or a checksum is wrong. Else empty.

    What follows the end mark is not looked at. Decoders fill what is missing of a JPEG with grey. For a PNG, OpenCV
    allocates up to 4 GiB for a chunk before it sees that the chunk is not there, and checks no checksums of an animated
    one. The other formats have no checksums, and decoders refuse those that are cut off. A broken download may leave
    zeros where the file had its full size from the start; decoders of WebP and JPEG 2000 take them for data.
    """
    if content.startswith(jpeg.MAGIC):
        return jpeg.fault(content)
    if content.startswith(_PNG):
        return _png_fault(content)
    return "damaged, its last part is zeros" if _lost_its_tail(content) else ""


def _lost_its_tail(content: bytes) -> bool:
    """Whether the last part of a WebP or JPEG 2000 is zeros; zeros behind its end do not count."""
    if not re.match(_COMPRESSED, content, re.DOTALL):
        return False
    if content.startswith(b"RIFF"):
        content = content[: 8 + int.from_bytes(content[4:8], "little")]
    data = content.rstrip(b"\0")
    return not data.endswith(_CODESTREAM_END) and (len(content) - len(data)) * _MOST_ZEROS > len(content)


def with_plain_colours(content: bytes) -> bytes:
    """A TIFF whose colours a decoder leaves as they are stored; any other file unchanged.

    libtiff multiplies colours by alpha where the tag ExtraSamples calls it unassociated; PNG, WebP and JPEG 2000 hold
    such alpha too, and OpenCV drops it from them without touching the colours.
    """
    if not re.match(_TIFF, content):
        return content
    try:
        tags = _Tiff(content)
        value, position = tags.values[_EXTRA_SAMPLES]
    except _DAMAGED:
        return content
    if value != _UNASSOCIATED:
        return content
    patched = bytearray(content)
    struct.pack_into(tags.order + "H", patched, position, _ASSOCIATED)
    return bytes(patched)


def _png_fault(content: bytes) -> str:
    view = memoryview(content)
    position = len(_PNG)
    while position + 12 <= len(content):  # length, type, data, checksum of type and data
        length, kind = struct.unpack_from(">I4s", content, position)
        start, position = position + 4, position + 12 + length
        if position > len(content):
            break
        critical = not kind[0] & 0x20
        if critical and zlib.crc32(view[start : position - 4]).to_bytes(4, "big") != view[position - 4 : position]:
            return f"damaged, the checksum of its chunk {kind.decode('ascii', 'backslashreplace')} is wrong"
        if kind == b"IEND":
            return ""
    return jpeg.CUT_OFF


def _bmp(content: bytes) -> Dimensions:
    (header,) = struct.unpack_from("<I", content, 14)
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", content, 18)
    return abs(width), abs(height)  # a negative height: rows from the top


def _webp(content: bytes) -> Dimensions:
    chunk = content[12:16]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", content, 26)
    return width & 0x3FFF, height & 0x3FFF


def _jpeg2000(content: bytes) -> Dimensions:
    start = 0
    while not content.startswith(_CODESTREAM, start):  # a box: length, type, content
        length, kind = struct.unpack_from(">I4s", content, start)
        if kind == b"jp2c":
            start += 16 if length == 1 else 8
        elif length == 1:  # the length follows in 64 bits
            start += max(struct.unpack_from(">Q", content, start + 8)[0], 16)
        else:
            start += max(length, 8)
    width, height, left, top = struct.unpack_from(">4I", content, start + 8)
    return width - left, height - top


def _avif(content: bytes) -> Dimensions:
    # One property for each item: the picture, its tiles, alpha and thumbnail.
    sizes = re.findall(rb"ispe\0{4}(.{4})(.{4})", content, re.DOTALL)
    return _largest((int.from_bytes(width, "big"), int.from_bytes(height, "big")) for width, height in sizes)


def _hdr(content: bytes) -> Dimensions:
    sizes = re.findall(rb"\n-Y\s+(\d{1,12})\s+\+X\s+(\d{1,12})", content)
    return _largest((int(width), int(height)) for height, width in sizes)


def _pam(content: bytes) -> Dimensions:
    fields = [line.split() for line in content[: content.index(b"ENDHDR")].splitlines()]
    width, height = (max(int(field[1]) for field in fields if field[:1] == [name]) for name in (b"WIDTH", b"HEIGHT"))
    return width, height


def _netpbm(content: bytes) -> Dimensions | None:
    match = re.match(rb"P." + 2 * (rb"(?:\s|#[^\r\n]*[\r\n])+(\d{1,12})"), content)
    return (int(match[1]), int(match[2])) if match else None


def _fixed(layout: str, offset: int) -> Callable[[bytes], Dimensions]:
    """A reader of width and height at ``offset``."""

    def read(content: bytes) -> Dimensions:
        width, height = struct.unpack_from(layout, content, offset)
        return width, height

    return read


class _Tiff:
    """The first directory of a TIFF: for the tags ``_TAGS`` the first value and where it lies."""

    def __init__(self, content: bytes) -> None:
        self.order = "<" if content.startswith(b"I") else ">"
        (version,) = struct.unpack_from(self.order + "H", content, 2)
        big = version == 43
        address, count, entry, inline = ("Q", "Q", 20, 12) if big else ("I", "H", 12, 8)
        (offset,) = struct.unpack_from(self.order + address, content, 8 if big else 4)
        (entries,) = struct.unpack_from(self.order + count, content, offset)
        self.values: dict[int, tuple[int, int]] = {}
        offset += struct.calcsize(count)
        # No reader takes more than 65,535 entries.
        for start in range(offset, min(offset + entry * min(entries, 65535), len(content) - entry + 1), entry):
            tag, kind, number = struct.unpack_from(f"{self.order}HH{address}", content, start)
            if tag not in _TAGS or kind not in _INTEGERS:
                continue
            position = start + inline
            with contextlib.suppress(*_DAMAGED):  # a decoder may pass over an entry that leads out of the file
                if number * struct.calcsize(_INTEGERS[kind]) > struct.calcsize(address):
                    (position,) = struct.unpack_from(self.order + address, content, position)
                (value,) = struct.unpack_from(self.order + _INTEGERS[kind], content, position)
                self.values.setdefault(tag, (value, position))

    def value(self, tag: int) -> int:
        return self.values.get(tag, (0, 0))[0]


def _tiff(content: bytes) -> Dimensions:
    tags = _Tiff(content)
    # A tile is decoded as a whole.
    pairs = ((_WIDTH, _HEIGHT), (_TILE_WIDTH, _TILE_HEIGHT))
    return _largest((tags.value(width), tags.value(height)) for width, height in pairs)


def _largest(sizes: Iterable[Dimensions]) -> Dimensions:
    return max(sizes, key=lambda size: size[0] * size[1])


_READERS: tuple[tuple[bytes, Callable[[bytes], Dimensions | None]], ...] = (
    (jpeg.MAGIC, jpeg.dimensions),
    (rb"\x89PNG", _fixed(">II", 16)),
    (_TIFF, _tiff),
    (rb"RIFF....WEBP", _webp),
    (rb"BM", _bmp),
    (rb"GIF8", _fixed("<HH", 6)),
    (rb"P7", _pam),
    (rb"P[1-6Ff]", _netpbm),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", _jpeg2000),
    (rb"....ftyp", _avif),
    (rb"#\?R", _hdr),
    (rb"\x59\xa6\x6a\x95", _fixed(">II", 4)),
)
