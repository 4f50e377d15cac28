"""Mutated picture files: each is read or refused with `ImageError`, in bounded time and memory.

    python tests/stress/pictures.py --cases 40000

Pictures of every format that is read are cut, overwritten, extended and spliced, and are given to `read_image` in
forked children, so that a crash inside a library is a finding too.
"""

from __future__ import annotations

import io
import os
import random
import sys
from pathlib import Path

import cv2
import fuzzing
import mutations
import numpy as np
import probe
from PIL import Image

from isnet_trt.pictures.files import read_image

MEMORY = 2304 << 20
"""Twice this is 16 bytes for each of 2²⁸ pixels, the limit, and an eighth."""
FILE = "picture"


def pictures(size: tuple[int, int] = (40, 57)) -> dict[str, bytes]:
    """One small picture of each format and variant."""
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    blurred = cv2.GaussianBlur(noise, (5, 5), 2)
    image, deep = Image.fromarray(blurred), blurred.astype(np.uint16) * 257
    alpha = Image.fromarray(np.dstack([blurred, noise[..., 0]]))
    frames = {"save_all": True, "append_images": [Image.fromarray(np.roll(blurred, 9 * i, 1)) for i in (1, 2)]}
    oriented = Image.Exif()
    oriented[0x0112] = 6
    pillow = {
        "jpeg": (image, "JPEG", {}),
        "jpeg exif": (image, "JPEG", {"exif": oriented}),
        "jpeg progressive": (image, "JPEG", {"progressive": True}),
        "jpeg restarts": (image, "JPEG", {"restart_marker_blocks": 2}),
        "jpeg grey": (image.convert("L"), "JPEG", {}),
        "jpeg cmyk": (image.convert("CMYK"), "JPEG", {}),
        "png": (image, "PNG", {}),
        "png palette": (image.quantize(16), "PNG", {"transparency": 0}),
        "png animated": (image, "PNG", frames),
        "png alpha": (alpha, "PNG", {}),
        "tiff": (image, "TIFF", {"tiffinfo": {0x0112: 6}}),
        "tiff lzw": (image, "TIFF", {"compression": "tiff_lzw"}),
        "tiff deflate": (image, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "tiff jpeg": (image, "TIFF", {"compression": "jpeg"}),
        "tiff packbits": (image, "TIFF", {"compression": "packbits"}),
        "tiff fax": (image.convert("1"), "TIFF", {"compression": "group4"}),
        "tiff alpha": (alpha, "TIFF", {}),
        "tiff big": (image, "TIFF", {"big_tiff": True}),
        "tiff pages": (image, "TIFF", frames),
        "webp": (image, "WEBP", {}),
        "webp lossless": (alpha, "WEBP", {"lossless": True}),
        "webp animated": (image, "WEBP", frames),
        "bmp": (image, "BMP", {}),
        "bmp palette": (image.quantize(16), "BMP", {}),
        "gif": (image, "GIF", {}),
        "gif animated": (image, "GIF", frames),
        "ppm": (image, "PPM", {}),
        "jpeg2000": (image, "JPEG2000", {}),
        "avif": (image, "AVIF", {}),
    }
    files = {}
    for name, (source, form, options) in pillow.items():
        stream = io.BytesIO()
        source.save(stream, form, **options)
        files[name] = stream.getvalue()
    opencv = {
        "png deep": (".png", deep),
        "tiff deep": (".tif", deep),
        "sun": (".ras", blurred),
        "pam": (".pam", blurred),
    }
    opencv |= {"hdr": (".hdr", blurred.astype(np.float32)), "pfm": (".pfm", blurred.astype(np.float32))}
    return files | {name: cv2.imencode(suffix, array)[1].tobytes() for name, (suffix, array) in opencv.items()}


class Pictures:
    """Mutations of one picture of each format, for `read_image`."""

    memory = MEMORY

    def __init__(self) -> None:
        self.files = pictures()

    def start(self, folder: Path) -> None:
        """Keep the libraries from printing every refusal."""
        cv2.utils.logging.setLogLevel(0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

    def write(self, number: int, folder: Path) -> str:
        """Write mutation ``number``."""
        chance, names = random.Random(number), list(self.files)
        name = names[number % len(names)]
        if chance.random() < 0.01:
            return f"{name}, {mutations.special_file(chance, folder / FILE)}"
        content = mutations.mutated_bytes(chance, self.files[name], list(self.files.values()))
        mutations.put(folder / FILE, content)
        return name

    def read(self, folder: Path) -> str:
        """Read it: an image uint8 (H, W, 3)."""
        image = read_image(folder / FILE)
        sound = image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
        return fuzzing.RIGHT if sound else f"an array {image.dtype} {image.shape}"

    def subject(self, folder: Path) -> str:
        """The file's path."""
        return str(folder / FILE)


if __name__ == "__main__":
    sys.exit(fuzzing.run(Pictures(), probe.parser(__doc__, 40_000).parse_args()))
