"""Segment images on a Ray cluster with Ray Data: read, segment and write as a pipeline of tasks and actors.

Ray does scheduling, retries and back pressure (https://docs.ray.io/en/latest/data/data.html). Tested with Ray 2.60.
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from isnet_trt.bundle import read_bundle
from isnet_trt.bundle.draft import absolute
from isnet_trt.engines.table import library
from isnet_trt.errors import ImageError, OutOfMemory, SettingsError, first_few, needs
from isnet_trt.integrations.calls import segment_each
from isnet_trt.integrations.ray_masks import Batch, Masks, find_masks, objects, origin_for, write_mask
from isnet_trt.pictures.files import encode_png, read_stream
from isnet_trt.pictures.finding import SUFFIXES
from isnet_trt.pictures.results import mark_png
from isnet_trt.runtime.prefetch import prefetch
from isnet_trt.runtime.segmentation import Segmentation
from isnet_trt.runtime.segmenter import Segmenter
from isnet_trt.settings import Inference

with needs("isnet_trt.integrations.ray", "ray"):
    import pyarrow
    import ray.data
    from pyarrow import fs

_ROWS, _MOST_ROWS = 32, 128


@dataclass(frozen=True)
class Actors:
    """The processes that segment, each with a `Segmenter` of its own.

    Attributes:
        count: how many, or (least, most) for a pool that grows and shrinks.
        num_gpus: of an actor; a fraction lets several share a GPU, so that one decodes while another computes.
        num_cpus: of an actor: threads of ONNX Runtime and of the merge. Reserved for actors without a GPU.
        io_threads: threads of an actor that read and decode images and write masks, while the engine computes.
        engine: "onnxruntime" instead of the bundle's own engine.

    Raises:
        SettingsError: a number is too small, or the engine is unknown.
    """

    count: int | tuple[int, int] = 1
    num_gpus: float = 0
    num_cpus: int = 1
    io_threads: int = 2
    engine: str | None = None

    def __post_init__(self) -> None:
        least, most = self._range()
        if not 1 <= least <= most:
            raise SettingsError(f"actors: count {self.count}; give 1 or more, or (least, most)")
        if self.num_gpus < 0 or self.num_cpus < 0 or self.io_threads < 1:
            raise SettingsError(
                f"actors: num_gpus {self.num_gpus}, num_cpus {self.num_cpus}, io_threads {self.io_threads}; the first "
                "two may not be negative, and at least one thread reads and writes"
            )
        if self.engine is not None:
            library(self.engine)

    def _range(self) -> tuple[int, int]:
        """Least and most actors."""
        return (self.count, self.count) if isinstance(self.count, int) else self.count

    def strategy(self) -> Any:
        """Ray's description of the pool."""
        least, most = self._range()
        return ray.data.ActorPoolStrategy(min_size=least, max_size=most)

    def rows(self, images: int) -> int:
        """Images of a task, of ``images`` files: more cost less scheduling, but leave some actors idle."""
        return max(_ROWS, min(_MOST_ROWS, images // (4 * self._range()[1])))

    def resources(self) -> dict[str, float]:
        """What Ray reserves for an actor; both at once are experimental in Ray Data."""
        return {"num_gpus": self.num_gpus} if self.num_gpus else {"num_cpus": self.num_cpus}

    def options(self) -> dict[str, Any]:
        """The arguments of `Segmenter.open`."""
        # Ray shows an actor only its own GPUs, so that the first is always the right one.
        device = "cuda" if self.num_gpus else "auto"
        threads = {"threads": max(1, int(self.num_cpus)), "io_threads": self.io_threads}
        return {"engine": self.engine, "device": device, **threads}


def segment(
    images: ray.data.Dataset | str | os.PathLike[str] | Sequence[str],
    bundle: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    beside: bool = False,
    root: str | os.PathLike[str] | None = None,
    filesystem: Any = None,
    resume: bool = True,
    preset: str = "default",
    inference: Inference | None = None,
    actors: Actors | None = None,
    rows: int | None = None,
) -> ray.data.Dataset:
    """Segment images on a Ray cluster; returns a dataset that is computed when it is consumed.

    Args:
        images: a file or folder, or several (folders are searched with their subfolders), on any file system that
            pyarrow knows: local paths, ``s3://…``, ``gs://…``, ``hdfs://…``. Or a dataset with a column "path", and
            "bytes" (encoded) or "image" (uint8 (H, W, 3) RGB) where the images are read already.
        bundle: the bundle's folder, which every node finds under this path.
        out: write the label maps into this folder, as PNG files called STEM_labels.png; with ``beside`` next to the
            images. With neither they are the column "labels".
        root: of a dataset with ``out``: the folder that the paths begin with; folders below it are repeated in ``out``.
        filesystem: a `pyarrow.fs.FileSystem` or an fsspec one for all paths, which then have no scheme.
        resume: leave out images whose mask is there already, from the same bundle, settings and engine; other masks
            are written again. Masks are written as a whole or not at all. A file that is no result of this package is
            not replaced: its image is a row with that error.
        preset: a preset of the bundle, used unless ``inference`` gives the settings.
        actors: the processes that segment.
        rows: images of one task of an actor: what is done again after a process was killed. Default: 32; up to 128 of
            listed files whose masks are written, if that leaves four tasks for each actor.

    Each image is a row: "path"; "labels" (H, W), or "labels_path"; "found", whether its mask was there already; and
    "error", the reason why it has no label map, else empty. Further columns of a dataset are kept.

    Raises:
        BundleError: there is no such bundle.
        ImageError: a path does not exist, or there is no image.
        SettingsError: the preset is unknown, two images have one mask, ``out`` cannot be created, or arguments
            contradict each other.
    """
    if rows is not None and rows < 1:
        raise SettingsError(f"rows is {rows}; give 1 or more")
    opened = read_bundle(bundle, verify=False)
    settings = inference or opened.manifest.preset(preset)
    actors = actors or Actors()
    if out is not None and beside:
        raise SettingsError("masks are written to out or beside the images, not both")
    masks = None
    system, (target,) = _resolved([str(out or ".")], filesystem)
    if out is not None or beside:
        origin = origin_for(opened, settings, actors.engine)
        masks = Masks(system, target if out is not None else None, str(root or ""), resume, origin)
    if isinstance(images, ray.data.Dataset):
        dataset, system = images, system if filesystem is not None else fs.LocalFileSystem()
    else:
        system, listed = find_images([images] if isinstance(images, str | os.PathLike) else images, filesystem, masks)
        if masks is not None and masks.folder is None:
            masks = dataclasses.replace(masks, filesystem=system)
        rows = rows or (actors.rows(len(listed)) if masks else _ROWS)
        dataset = ray.data.from_arrow([listed.slice(start, rows) for start in range(0, len(listed), rows)])
    if masks is not None:
        masks.create_folder()
        # With resources unlike the actor's, Ray does not fuse the two: what an actor wrote before it was killed is then
        # not "found" when its images are done again.
        dataset = dataset.map_batches(find_masks, batch_size=None, num_cpus=0, fn_kwargs={"masks": masks})
    constructor = {"bundle": str(absolute(bundle)), "inference": settings, "filesystem": system, "masks": masks}
    pool = {"compute": actors.strategy(), "fn_constructor_kwargs": {**constructor, **actors.options()}}
    return dataset.map_batches(SegmentBatch, batch_size=rows or _ROWS, **pool, **actors.resources())


def _resolved(paths: Iterable[str | os.PathLike[str]], filesystem: Any) -> tuple[Any, list[str]]:
    """The file system of paths, and the paths on it."""
    texts = [os.fspath(path) for path in paths]
    if not texts:
        raise ImageError("there are no images: the list of paths is empty")
    if filesystem is not None:
        known = isinstance(filesystem, fs.FileSystem)
        return filesystem if known else fs.PyFileSystem(fs.FSSpecHandler(filesystem)), texts
    try:
        pairs = [fs.FileSystem.from_uri(text if "://" in text else str(absolute(text))) for text in texts]
    except (OSError, pyarrow.ArrowException) as error:
        raise SettingsError(f"{first_few(texts)}: no file system is known for this ({error})") from None
    if any(system != pairs[0][0] for system, _ in pairs):
        raise SettingsError(f"{first_few(texts)} are on different file systems; segment them in separate calls")
    return pairs[0][0], [path for _, path in pairs]


def find_images(
    paths: Iterable[str | os.PathLike[str]], filesystem: Any, masks: Masks | None
) -> tuple[Any, pyarrow.Table]:
    """The file system of images, and a table of their paths, with those of their masks.

    Masks that lie among the images are left out.

    Raises:
        ImageError: a path does not exist, or there is no image.
        SettingsError: two images have one mask.
    """
    system, resolved = _resolved(paths, filesystem)
    roots: dict[str, str] = {}
    for path in resolved:
        info = system.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            raise ImageError(f"{path}: there is no such file or folder")
        if info.type == fs.FileType.Directory:
            entries = system.get_file_info(fs.FileSelector(path, recursive=True))
            roots |= {entry.path: path for entry in entries if _is_image(entry, path)}
        else:
            roots[path] = str(PurePosixPath(path).parent)
    if masks is None:
        targets = dict.fromkeys(roots, "")
    else:
        targets = {path: Masks(system, masks.folder, root).path(path) for path, root in roots.items()}
    images = sorted(set(targets) - set(targets.values()))
    if not images:
        raise ImageError(f"{first_few(resolved)}: there are no images")
    counts = Counter(targets[path] for path in images if targets[path])
    if several := [path for path in images if counts[targets[path]] > 1]:
        raise SettingsError(f"{first_few(several)} would be written to one mask; rename them")
    columns = {"path": images} if masks is None else {"path": images, "labels_path": [targets[path] for path in images]}
    return system, pyarrow.table(columns)


def _is_image(info: Any, root: str) -> bool:
    path = PurePosixPath(info.path)
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return info.type == fs.FileType.File and path.suffix.lower() in SUFFIXES and not hidden


class SegmentBatch:
    """Read and segment the images of rows, and write their label maps; an actor of Ray, with a segmenter of its own.

    Threads read, decode and write, while the engine computes the image between.
    """

    def __init__(
        self, bundle: str, inference: Inference, filesystem: Any, masks: Masks | None, io_threads: int, **options: Any
    ) -> None:
        self._segmenter = Segmenter.open(bundle, inference=inference, **options)
        self._filesystem, self._masks = filesystem, masks
        self._threads, self._depth = ThreadPoolExecutor(io_threads), io_threads

    def __call__(self, batch: Batch) -> Batch:
        """Add the columns "error" and "found", and replace "bytes" and "image" by "labels", or by files.

        Raises:
            EngineError: the engine failed, for other reasons than an image that takes too much memory.
        """
        count = len(next(iter(batch.values())))
        found = batch["found"] if self._masks else np.zeros(count, bool)
        labels, errors = objects([np.zeros((0, 0), np.uint8)] * count), [""] * count
        if self._masks:
            errors = list(map(str, batch["error"]))
        undone = [number for number in range(count) if not (found[number] or errors[number])]
        read = partial(self._read, batch.get("path"), batch.pop("bytes", None), batch.pop("image", None))
        for number, result in self._segmented(undone, read, batch.get("labels_path")):
            if isinstance(result, Segmentation):
                labels[number] = result.labels
            elif isinstance(result, ImageError | OutOfMemory):
                errors[number] = f"{type(result).__name__}: {result}"
            else:
                raise result
        columns = {} if self._masks else {"labels": labels}
        return {**batch, **columns, "error": np.array(errors, object), "found": found}

    def _segmented(
        self, numbers: Iterable[int], read: Callable[[int], Any], targets: Any
    ) -> Iterator[tuple[int, Segmentation | Exception]]:
        """Each number with the result of its image, whose label map is written, or with the reason why not."""

        def start_reading(number: int) -> tuple[int, Future[Any]]:
            return number, self._threads.submit(read, number)

        def start_writing(job: tuple[tuple[int, Any], Any]) -> tuple[int, Future[Segmentation | Exception]]:
            (number, _), result = job
            path = "" if targets is None else str(targets[number])
            return number, self._threads.submit(self._write, path, result)

        reading = prefetch(numbers, start_reading, lambda job: job, self._depth)
        segmented = segment_each(self._segmenter, reading, lambda job: job[1].result())
        return prefetch(segmented, start_writing, lambda job: (job[0], job[1].result()), self._depth)

    def _read(self, paths: Any, contents: Any, images: Any, number: int) -> Any:
        """The image of a row, decoded."""
        if images is not None:
            return np.ascontiguousarray(images[number])
        path = "" if paths is None else str(paths[number])
        try:
            content = self._filesystem.open_input_stream(path).read() if contents is None else contents[number]
        except (OSError, pyarrow.ArrowException) as error:
            raise ImageError(f"{path} cannot be read: {error}") from None
        return read_stream(_NamedFile(content, path or "the image"))

    def _write(self, path: str, result: Segmentation | Exception) -> Segmentation | Exception:
        """Write a label map to ``path``, if there are both; returns ``result``, or why it cannot be written."""
        if self._masks is None or isinstance(result, Exception):
            return result
        try:
            write_mask(self._masks.filesystem, path, mark_png(encode_png(result.labels), self._masks.origin))
        except (ImageError, OSError, pyarrow.ArrowException) as error:
            return ImageError(f"{path} cannot be written: {error}")
        return result


class _NamedFile(io.BytesIO):
    """The content of a file, with its path for messages."""

    def __init__(self, content: bytes, path: str) -> None:
        super().__init__(content)
        self.name = path
