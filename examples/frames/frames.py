"""Frames of a C library segmented where they are: frames.py LIBRARY BUNDLE [HEIGHT WIDTH]

The library owns pixels and label maps, both with padded rows; nothing is copied on the way in or out.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator

from isnet_trt import RawImage, RawLabels, Segmenter


class Frame(ctypes.Structure):
    """``struct frame`` of frames.c."""

    _fields_ = (
        ("pixels", ctypes.c_void_p),
        ("labels", ctypes.c_void_p),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("pitch", ctypes.c_size_t),
        ("labels_pitch", ctypes.c_size_t),
    )

    @property
    def image(self) -> RawImage:
        """The pixels, for a segmenter."""
        return RawImage(self.pixels, self.height, self.width, self.pitch, "bgr", owner=self)

    @property
    def label_map(self) -> RawLabels:
        """Where the labels go."""
        return RawLabels(self.labels, self.height, self.width, self.labels_pitch, owner=self)


def load(path: str) -> ctypes.CDLL:
    """The library with its functions' types."""
    library = ctypes.CDLL(path)
    library.frame_open.argtypes = [ctypes.POINTER(Frame), ctypes.c_int, ctypes.c_int, ctypes.c_int]
    library.frame_count.argtypes = [ctypes.POINTER(Frame), ctypes.c_int]
    library.frame_count.restype = ctypes.c_size_t
    library.frame_close.argtypes = [ctypes.POINTER(Frame)]
    return library


def segmented(library: ctypes.CDLL, segmenter: Segmenter, height: int, width: int, frames: int) -> Iterator[Frame]:
    """Frames with their labels written; each is freed when the next one is asked for."""
    for number in range(frames):
        frame = Frame()
        if library.frame_open(frame, height, width, number):
            raise MemoryError(f"no memory for a frame of {height}x{width}")
        try:
            segmenter(frame.image, out=frame.label_map)
            yield frame
        finally:
            library.frame_close(frame)


def main(library_path: str, bundle: str, height: str = "180", width: str = "320") -> None:
    """Print the share of each class, counted by the library, for three frames."""
    library = load(library_path)
    with Segmenter.open(bundle) as segmenter:
        for number, frame in enumerate(segmented(library, segmenter, int(height), int(width), 3)):
            counts = [library.frame_count(frame, i) for i in range(segmenter.labels.count)]
            found = ((segmenter.labels.names[i], n) for i, n in enumerate(counts) if n)
            print(f"frame {number}:", ", ".join(f"{name} {n}" for name, n in found))


if __name__ == "__main__":
    main(*sys.argv[1:])
