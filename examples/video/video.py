"""Segment a video with one's own loop around `Segmenter.map`: read, segment and show at the same time.

    python examples/video/video.py bundles/city in.mp4

Prints, for every second of the video, which class covers most of the frame. Frames are read by a thread; on a GPU the
next one is uploaded while the labels of this one come back.
"""

from __future__ import annotations

import sys

from isnet_trt import Segmenter
from isnet_trt.pictures.video import VideoReader


def main(bundle: str, source: str) -> None:
    """Print a line for every second of the video ``source``."""
    with VideoReader(source) as reader, Segmenter.open(bundle) as segmenter:
        images = (frame.image for frame in reader)
        for number, segmentation in enumerate(segmenter.map(images, order="bgr")):
            if number % round(reader.rate) == 0:
                largest, share = next(iter(segmentation.shares().items()))
                print(f"{number / reader.rate:6.1f} s  {segmentation.names[largest]}  {share:.0%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
