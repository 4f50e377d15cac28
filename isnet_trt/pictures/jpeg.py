"""JPEG, ITU-T T.81 annex B: markers, size, and whether the data of an image are all there.

A decoder fills what a scan lacks with grey, and goes on. `fed` changes a file so that it decodes to the same image only
if nothing is missing.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MAGIC = b"\xff\xd8\xff"
CUT_OFF = "cut off, its end is missing"
INCOMPLETE = "damaged, a part of its data is missing"
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_RESTARTS = range(0xD0, 0xD8)
_ALONE = frozenset((0x01, *_RESTARTS, 0xD8))
"""Markers without a length: TEM, RST0 to RST7 (between the parts of a scan) and SOI."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2
"""Frames in Huffman codes; a decoder of arithmetic codes may read beyond the end of a scan."""
_END, _SCAN, _INTERVAL = 0xD9, 0xDA, 0xDD
_FILLER = bytes(73 * number % 255 for number in range(8))
"""As many bytes as a decoder reads ahead; without 0xff, which begins a marker."""
_GREY = (128, 65)
"""All components 128: of RGB or grey, and of CMYK."""


@dataclass
class _Scan:
    components: bytes
    first: int
    last: int
    high_bit: int
    low_bit: int
    interval: int
    """Blocks (MCUs) between two restart markers; 0: there are none."""
    ends: list[int] = field(default_factory=list)
    """Where the data of its parts end."""


@dataclass
class _Layout:
    process: int = 0
    size: tuple[int, int] = (0, 0)
    sampling: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Component -> horizontal and vertical factor."""
    scans: list[_Scan] = field(default_factory=list)
    end: int = 0
    """Where the end mark is; 0 where it is missing."""


def markers(content: bytes) -> Iterator[tuple[int, int]]:
    """The markers up to the end mark and where each one's data begin; those of an embedded thumbnail are skipped."""
    position = 0
    while match := _MARKER.search(content, position):
        marker, position = match[1][0], match.end()
        yield marker, position
        if marker == _END:
            return
        if marker not in _ALONE:
            position += int.from_bytes(content[position : position + 2], "big")


def dimensions(content: bytes) -> tuple[int, int] | None:
    """(width, height) in pixels; None without a frame. Raises struct.error if the file ends before."""
    for marker, position in markers(content):
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", content, position + 3)
            return width, height
    return None


def fault(content: bytes) -> str:
    """What is missing of a JPEG by its markers: its end, restart markers, scans of a progressive one; else empty."""
    layout = _layout(content)
    if not layout.end:
        return CUT_OFF
    if layout.process == _PROGRESSIVE:
        return "" if _has_all_scans(layout) else INCOMPLETE
    return INCOMPLETE if layout.process in _SEQUENTIAL and _lacks_restarts(layout) else ""


def mean_values(content: bytes) -> bytes | None:
    """A progressive JPEG up to the scans with the mean values of its blocks; None for any other file."""
    layout = _layout(content)
    means = [scan for scan in layout.scans if not scan.first and not scan.high_bit]
    if layout.process != _PROGRESSIVE or not means:
        return None
    return content[: means[-1].ends[-1]] + bytes((0xFF, _END))


def fed(content: bytes) -> bytes:
    """A JPEG with other bytes behind the data of each part of its scans, which a decoder skips unless it lacks data.

    Arithmetic codes stay as they are: their decoder may read beyond the end.
    """
    layout = _layout(content)
    if layout.process not in (*_SEQUENTIAL, _PROGRESSIVE):
        return content
    ends = [end for scan in layout.scans for end in scan.ends]
    if layout.process != _PROGRESSIVE and len(layout.scans) == 1:
        content = content[: ends[-1]]  # without end mark, before which libjpeg would print how much it skips
    return _FILLER.join(content[start:end] for start, end in zip((0, *ends), (*ends, None), strict=True))


def has_grey_area(image: NDArray[np.uint8], step: int) -> bool:
    """Whether an image has 4×4 pixels, ``step`` pixels apart, of the colour that a decoder fills in."""
    samples = image[::step, ::step]
    blue = np.ascontiguousarray(samples[..., 0])  # the other colours are seldom looked at
    return any(_has_block(blue == value) and _has_block((samples == value).all(axis=-1)) for value in _GREY)


def _has_block(grid: NDArray[np.bool_]) -> bool:
    """Whether 4×4 neighbours are all true."""
    for reach in (1, 2):
        grid = grid[reach:] & grid[:-reach]
        grid = grid[:, reach:] & grid[:, :-reach]
    return bool(grid.any())


def _has_all_scans(layout: _Layout) -> bool:
    """Whether the scans of a progressive image bring every coefficient of every component to its last bit."""
    missing_bits: dict[tuple[int, int], int] = {}
    for scan in layout.scans:
        for key in itertools.product(scan.components, range(scan.first, scan.last + 1)):
            if missing_bits.get(key, 0) != scan.high_bit:  # a scan in between is not there
                return False
            missing_bits[key] = scan.low_bit
    return len(missing_bits) >= 64 * len(layout.sampling) and not any(missing_bits.values())


def _lacks_restarts(layout: _Layout) -> bool:
    return len(layout.scans) == 1 and any(
        scan.interval and len(scan.ends) < -(-_blocks(layout) // scan.interval) for scan in layout.scans
    )


def _blocks(layout: _Layout) -> int:
    """The blocks (MCUs) of an image in one scan."""
    single = len(layout.sampling) == 1  # whose factors count for nothing
    factors = [(1, 1)] if single else [(1, 1), *layout.sampling.values()]
    return math.prod(-(-side // (8 * max(pair[axis] for pair in factors))) for axis, side in enumerate(layout.size))


def _layout(content: bytes) -> _Layout:
    """The frame and the scans of a JPEG as far as they can be read."""
    layout, interval, open_scan = _Layout(), 0, False
    if not content.startswith(MAGIC):
        return layout
    with contextlib.suppress(struct.error, LookupError, ValueError):  # what lies beyond the end of the file
        for marker, start in markers(content):
            if open_scan:
                layout.scans[-1].ends.append(_data_end(content, start - 2))
            open_scan = (open_scan and marker in _RESTARTS) or marker == _SCAN
            if marker in _FRAMES:
                _read_frame(content, start, marker, layout)
            elif marker == _INTERVAL:
                (interval,) = struct.unpack_from(">H", content, start + 2)
            elif marker == _SCAN:
                layout.scans.append(_scan(content, start, interval))
            elif marker == _END:
                layout.end = start - 2
    return layout


def _data_end(content: bytes, position: int) -> int:
    while content[position - 1] == 0xFF:  # fill bytes before a marker
        position -= 1
    return position


def _read_frame(content: bytes, start: int, process: int, layout: _Layout) -> None:
    height, width, count = struct.unpack_from(">HHB", content, start + 3)
    layout.process, layout.size = process, (width, height)
    fields = (content[start + 8 + 3 * number :][:3] for number in range(count))
    layout.sampling = {component: (factors >> 4, factors & 15) for component, factors, _ in fields}


def _scan(content: bytes, start: int, interval: int) -> _Scan:
    end = start + 3 + 2 * content[start + 2]
    first, last, bits = struct.unpack_from("BBB", content, end)
    return _Scan(content[start + 3 : end : 2], first, last, bits >> 4, bits & 15, interval)
