"""Inputs of the formula in docs/scale.md, and what Ray Data costs on one machine beside a plain loop.

    python -m benchmarks.scale [BUNDLE]

The inputs are reading, decoding and writing of images of ``--input-size``. With a BUNDLE, which needs the extra
``ray``, a plain loop and a Ray pipeline segment the same drawn image files too: each with one segmenter of
``--threads`` threads, and a mask written for each image. Rounds are interleaved. The time until the pipeline's first
mask, in which its actor starts, is reported apart.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2

from benchmarks import command, results, stats
from isnet_trt import Segmenter, cli, timing
from isnet_trt.errors import EngineError, needs
from isnet_trt.files import write_file
from isnet_trt.pictures.files import decode_image, encode_png
from isnet_trt.pictures.results import mark_png
from isnet_trt.training.scenes import draw_scene

_PLAIN, _RAY = "plain loop", "Ray Data"
Times = dict[str, float]
"""Seconds by stage; "total" is all of a run, "start" the part of it until the first mask was written."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = cli.parser("benchmarks.scale", __doc__ or "")
    text = "compare Ray Data with a plain loop on it; without it only --input-size and --out have an effect"
    parser.add_argument("bundle", nargs="?", metavar="BUNDLE", help=text)
    parser.add_argument("--images", type=cli.positive, default=2000, help="image files (default: 2000)")
    command.add_image_size(parser, "of the drawn images (default: 96 160)", (96, 160))
    text = "of the images for the formula's inputs (default: 1024 2048)"
    parser.add_argument("--input-size", nargs=2, type=cli.side, default=(1024, 2048), metavar=("H", "W"), help=text)
    command.add_common(parser, rounds=3)
    arguments = parser.parse_args(argv)
    records = _loops(arguments) if arguments.bundle else []
    records.append(_inputs(tuple(arguments.input_size)))
    return command.finish(records, [], arguments.out)


def _loops(arguments: argparse.Namespace) -> list[results.Record]:
    """Records of the plain loop, of the pipeline, and of the pipeline's overhead."""
    with needs("benchmarks.scale", "ray"):
        import ray
    with tempfile.TemporaryDirectory() as folder, Segmenter.open(arguments.bundle, threads=1) as segmenter:
        description = segmenter.description
        images = _draw(Path(folder) / "images", arguments.images, tuple(arguments.image_size))
        runs = [
            functools.partial(loop, arguments.bundle, images, Path(folder) / "masks", arguments.threads)
            for loop in (_plain, _pipeline)
        ]
        os.environ.setdefault("RAY_worker_niceness", "0")  # not Ray's 15: both at the priority of this process
        ray.init(log_to_driver=False, include_dashboard=False)
        samples = timing.interleaved(runs, range(arguments.rounds), "scale")
        ray.shutdown()
    records = [
        _record(name, arguments.images, times, description) for name, times in zip((_PLAIN, _RAY), samples, strict=True)
    ]
    ratio = stats.spread([_steady(own) / _steady(plain) for plain, own in zip(*samples, strict=True)])
    figures = {"overhead": ratio.p50 - 1, "least": ratio.least - 1, "greatest": ratio.greatest - 1, "rounds": ratio.n}
    return [*records, {"kind": "scale", "case": "scale.overhead after the start", "figures": figures}]


def _inputs(size: tuple[int, int], count: int = 10) -> results.Record:
    """Bytes of a JPEG file, and milliseconds of processor time to read it, to decode it, and to write a mask."""
    times: dict[str, list[float]] = {"read_ms": [], "decode_ms": [], "write_ms": []}
    sizes = []
    with tempfile.TemporaryDirectory() as folder:
        path, mask = Path(folder) / "image.jpg", Path(folder) / "mask.png"
        for seed in range(count):
            scene = draw_scene(seed, *size)
            cv2.imwrite(str(path), scene.image[:, :, ::-1])
            sizes.append(path.stat().st_size)
            moments = [time.process_time()]
            content = path.read_bytes()
            moments.append(time.process_time())
            decode_image(content, path)
            moments.append(time.process_time())
            write_file(mask, mark_png(encode_png(scene.labels)))
            moments.append(time.process_time())
            for name, start, end in zip(times, moments[:-1], moments[1:], strict=True):
                times[name].append(1e3 * (end - start))
    figures = {"image_bytes": stats.spread(sizes).p50, **{name: stats.spread(one).p50 for name, one in times.items()}}
    return {"kind": "scale", "case": f"scale.inputs {size[0]}x{size[1]}", "figures": figures}


def _draw(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """JPEG files of 20 different scenes."""
    folder.mkdir()
    scenes = [draw_scene(seed, *size).image[:, :, ::-1] for seed in range(20)]
    for number in range(count):
        cv2.imwrite(str(folder / f"{number:06}.jpg"), scenes[number % len(scenes)])
    return folder


def _plain(bundle: str, images: Path, masks: Path, threads: int) -> Times:
    shutil.rmtree(masks, ignore_errors=True)
    masks.mkdir()
    start = time.perf_counter()
    times: Times = {"read_file": 0.0, "write": 0.0}
    with Segmenter.open(bundle, threads=threads) as segmenter:
        times["start"] = time.perf_counter() - start
        for path in sorted(images.iterdir()):
            before = time.perf_counter()
            content = path.read_bytes()
            times["read_file"] += time.perf_counter() - before
            result = segmenter(content)
            for stage, seconds in result.seconds.items():
                times[stage] = times.get(stage, 0.0) + seconds
            before = time.perf_counter()
            result.save(masks / f"{path.stem}_labels.png")
            times["write"] += time.perf_counter() - before
    return {**times, "total": time.perf_counter() - start}


def _pipeline(bundle: str, images: Path, masks: Path, threads: int) -> Times:
    from isnet_trt.integrations.ray import Actors, segment

    shutil.rmtree(masks, ignore_errors=True)
    start = time.perf_counter()
    dataset = segment(images, bundle, out=masks, actors=Actors(num_cpus=threads))
    first, count = 0.0, 0
    for row in dataset.iter_rows():
        first = first or time.perf_counter() - start
        if row["error"]:
            raise EngineError(f"{row['path']}: {row['error']}")
        count += 1
    return {"start": first, "total": time.perf_counter() - start, "rows": float(count)}


def _steady(times: Times) -> float:
    return times["total"] - times["start"]


def _record(name: str, images: int, times: Sequence[Times], description: str) -> results.Record:
    rates = stats.spread([images / _steady(one) for one in times])
    stages = {
        stage: 1e3 * stats.spread([one[stage] / images for one in times]).p50
        for stage in times[0]
        if stage not in ("start", "total", "rows")
    }
    figures = {
        "images_per_s": rates.p50,
        "quartiles": rates.quartiles,
        "start_s": stats.spread([one["start"] for one in times]).p50,
        "ms_per_image": stages,
    }
    # The kind has no section of its own: it is shown as a check.
    return {"kind": "scale", "case": f"scale.{name}", "figures": figures, "engine": description}


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
