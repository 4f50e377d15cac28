"""Frames a second of a video: ``predict``, which reads, segments and writes at the same time, beside a plain loop.

    python -m benchmarks.video --bundle BUNDLE

Both read the same drawn video (or ``--video``), segment every frame with the same open segmenter, and write overlays to
a file of the same codec.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from benchmarks import command, results, stats
from isnet_trt import Segmenter, cli, timing
from isnet_trt.commands.predict_video import segment_video
from isnet_trt.pictures.video import CODECS, VideoReader, writing
from isnet_trt.training.scenes import draw_scene

SUFFIX = ".avi"
OVERLAPPED, PLAIN = "predict", "plain loop"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = cli.parser("benchmarks.video", __doc__ or "")
    parser.add_argument("--bundle", required=True, metavar="BUNDLE", help="bundle of any engine")
    parser.add_argument("--video", metavar="FILE", help="instead of the drawn one")
    parser.add_argument("--frames", type=cli.positive, default=20, help="of the drawn video (default: 20)")
    size = "of the drawn video (default: 512 1024)"
    parser.add_argument("--size", type=cli.positive, nargs=2, default=(512, 1024), metavar=("H", "W"), help=size)
    command.add_common(parser, rounds=5)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        source = arguments.video or str(_draw(Path(folder) / f"in{SUFFIX}", arguments.frames, arguments.size))
        with Segmenter.open(arguments.bundle, threads=arguments.threads) as segmenter:
            loops = {OVERLAPPED: _overlapped, PLAIN: _plain}
            out = Path(folder) / f"out{SUFFIX}"
            runs = [functools.partial(_frames_per_second, loop, segmenter, source, out) for loop in loops.values()]
            samples = timing.interleaved(runs, range(arguments.rounds), "video")
            description = segmenter.description
    records = [_record(name, rates, description) for name, rates in zip(loops, samples, strict=True)]
    return command.finish(records, [], arguments.out)


def _draw(path: Path, frames: int, size: tuple[int, int]) -> Path:
    """A video that passes over a drawn street scene, a column of eight pixels a frame."""
    height, width = size
    scene = draw_scene(0, height, width + 8 * frames).image[:, :, ::-1]
    with writing(path, 25.0) as writer:
        for number in range(frames):
            writer.write(scene[:, 8 * number : 8 * number + width].copy(), number / 25.0)
    return path


def _frames_per_second(
    loop: Callable[[Segmenter, str, Path], int], segmenter: Segmenter, source: str, out: Path
) -> float:
    start = time.perf_counter()
    frames = loop(segmenter, source, out)
    return frames / (time.perf_counter() - start)


def _overlapped(segmenter: Segmenter, source: str, out: Path) -> int:
    """As ``predict`` does it; the number of frames."""
    with VideoReader(source) as reader, writing(out, reader.rate) as writer:
        stopped = segment_video(segmenter, segmenter.inference, reader, writer)
    if stopped is not None:
        raise stopped
    return writer.frames


def _plain(segmenter: Segmenter, source: str, out: Path) -> int:
    """One frame after the other with OpenCV's calls; the number of frames."""
    capture = cv2.VideoCapture(source)
    rate, frames, writer = capture.get(cv2.CAP_PROP_FPS), 0, None
    while (read := capture.read())[0]:
        image = np.asarray(read[1], np.uint8)
        overlay = segmenter(image, order="bgr").overlay(image, legend=False, hatching=False, order="bgr")[:, :, ::-1]
        if writer is None:
            code = cv2.VideoWriter.fourcc(*CODECS[SUFFIX])
            writer = cv2.VideoWriter(str(out), code, rate, (image.shape[1], image.shape[0]))
        writer.write(overlay)
        frames += 1
    if writer is not None:
        writer.release()
    capture.release()
    return frames


def _record(name: str, rates: Sequence[float], description: str) -> results.Record:
    spread = stats.spread(rates)
    figures = {"frames_per_s": spread.p50, "quartiles": spread.quartiles}
    # The kind has no section of its own: it is shown as a check.
    return {"kind": "video", "case": f"video.{name}", "figures": figures, "engine": description}


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
