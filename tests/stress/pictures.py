"""Mutated picture files: each is read or refused with `ImageError`, in bounded time and memory.

    python tests/stress/pictures.py --cases 100000

Pictures of every format that is read are cut, overwritten, extended and spliced, and are given to `read_image` in
forked children, so that a crash inside a library is a finding too. Exit status 1 if there is any finding; the file
that led to it is kept under ``--keep``.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from PIL import Image

from isnet_trt.errors import ImageError
from isnet_trt.pictures.files import read_image

SECONDS = 5
MEBIBYTES = 4608
"""Of one read, above the process's own: 16 bytes for each of 2²⁸ pixels, the limit, and an eighth."""
BATCH = 500
_NUMBERS = (0, 1, 2, 3, 4, 6, 8, 16, 127, 128, 255, 256, 32767, 32768, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


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


def mutated(seed: int, files: dict[str, bytes]) -> tuple[str, bytes]:
    """The name of the original and its mutation number ``seed``."""
    rng = np.random.default_rng(seed)
    names = list(files)
    name = names[seed % len(names)]
    content = bytearray(files[name])
    for _ in range(rng.integers(1, 4)):
        # Half of the changes hit the header, where the numbers are.
        reach = min(len(content), 200) if rng.random() < 0.5 else len(content)
        position = int(rng.integers(0, max(reach, 1)))
        match int(rng.integers(0, 7)):
            case 0:
                del content[position:]
            case 1:
                content[position : position + 1] = bytes([rng.integers(0, 256)])
            case 2:
                number = int(rng.choice(_NUMBERS))
                width = int(rng.choice((1, 2, 4)))
                order = "big" if rng.random() < 0.5 else "little"
                content[position : position + width] = (number % 256**width).to_bytes(width, order)
            case 3:
                del content[position : position + int(rng.integers(1, 50))]
            case 4:
                content[position:position] = rng.bytes(int(rng.integers(1, 50)))
            case 5:
                other = files[str(rng.choice(names))]
                start = int(rng.integers(0, len(other)))
                content[position : position + 60] = other[start : start + 60]
            case 6:
                content[position:position] = content[position : position + int(rng.integers(1, 200))]
    return name, bytes(content)


def finding(path: Path) -> str:
    """What is wrong with reading ``path``, or how it ended rightly: "read" or "refused"."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        image = read_image(path)
        end = "read" if image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8 else f"{image.shape}"
    except ImageError as error:
        end = "refused" if str(path) in str(error) else f"a message without the file: {error}"
    except Exception as error:
        end = f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - start
    mebibytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    if seconds > SECONDS:
        end = f"{seconds:.1f} s"
    return f"{mebibytes} MiB" if mebibytes > MEBIBYTES else end


def _batch(seeds: range, files: dict[str, bytes], folder: str, results: multiprocessing.SimpleQueue) -> None:
    cv2.utils.logging.setLogLevel(0)
    path = Path(folder) / "picture"
    for seed in seeds:
        name, content = mutated(seed, files)
        path.write_bytes(content)
        results.put((seed, name, ""))
        results.put((seed, name, finding(path)))
    results.put((-1, "", "end"))


def outcomes(seeds: range, files: dict[str, bytes]) -> Iterator[tuple[int, str, str]]:
    """Seed, original and outcome of each case; a child that dies or hangs is the outcome of its case."""
    first = seeds.start
    with TemporaryDirectory() as folder:
        while first < seeds.stop:
            results: multiprocessing.SimpleQueue = multiprocessing.SimpleQueue()
            child = multiprocessing.Process(
                target=_batch, args=(range(first, min(first + BATCH, seeds.stop)), files, folder, results), daemon=True
            )
            child.start()
            current, name, deadline = first, "", time.monotonic() + 60
            while True:
                if results.empty():
                    if not child.is_alive() or time.monotonic() > deadline:
                        child.kill()
                        child.join()
                        yield current, name, f"the process ended with {child.exitcode}"
                        first = current + 1
                        break
                    time.sleep(0.001)
                    continue
                current, name, outcome = results.get()
                deadline = time.monotonic() + 60
                if outcome == "end":
                    child.join()
                    first += BATCH
                    break
                if outcome:
                    yield current, name, outcome


def main() -> int:
    """Run the cases and print a table; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--keep", type=Path, default=Path("findings"), help="folder for the files of findings")
    arguments = parser.parse_args()
    files, counts, findings = pictures(), Counter[tuple[str, str]](), 0
    start = time.monotonic()
    for seed, name, outcome in outcomes(range(arguments.first, arguments.first + arguments.cases), files):
        if outcome in ("read", "refused"):
            counts[name, outcome] += 1
            continue
        findings += 1
        arguments.keep.mkdir(parents=True, exist_ok=True)
        (arguments.keep / str(seed)).write_bytes(mutated(seed, files)[1])
        print(f"case {seed}, {name}: {outcome}", flush=True)
    for name in files:
        print(f"{name:<18}{counts[name, 'read']:>8} read {counts[name, 'refused']:>8} refused")
    print(f"{arguments.cases} cases in {time.monotonic() - start:.0f} s, {findings} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
