"""The masks that `isnet_trt.integrations.ray` writes: where they are, what they are of, and which are there already."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from isnet_trt.bundle import MANIFEST, Bundle, sha256
from isnet_trt.errors import ImageError, SettingsError, needs
from isnet_trt.files import write_file
from isnet_trt.pictures.results import LABELS, ORIGIN_HEAD, origin_of
from isnet_trt.settings import Inference

with needs("isnet_trt.integrations.ray", "ray"):
    import pyarrow
    from pyarrow import fs

_log = logging.getLogger(__name__)
_READERS = 16
"""Threads of a task that read the beginnings of masks."""
Batch = dict[str, Any]
"""Columns of some rows, each an array."""


@dataclass(frozen=True)
class Masks:
    """Where label maps are written, as PNG files called STEM_labels.png.

    Attributes:
        filesystem: of images and masks, a `pyarrow.fs.FileSystem`.
        folder: the masks' folder, in which the images' folders below ``root`` are repeated; None: beside the images.
        root: the folder that the images' paths begin with.
        resume: leave out images whose mask is there and has this ``origin``.
        origin: digest of bundle, settings and engine, which is written into the masks.
    """

    filesystem: Any
    folder: str | None = None
    root: str = ""
    resume: bool = True
    origin: str = ""

    def path(self, image: str) -> str:
        """The path of an image's mask; SettingsError for an image outside ``root``."""
        path = PurePosixPath(image)
        if self.folder is not None:
            if not path.is_relative_to(self.root):
                raise SettingsError(f"{image} is not in the folder {self.root or '(no root was given)'}")
            path = PurePosixPath(self.folder) / path.relative_to(self.root)
        return str(path.with_name(path.stem + LABELS))

    def create_folder(self) -> None:
        """Create ``folder``, before the first image is segmented for a place that cannot be written.

        Raises:
            SettingsError: it cannot be created.
        """
        try:
            if self.folder is not None:
                self.filesystem.create_dir(self.folder, recursive=True)
        except (OSError, pyarrow.ArrowException) as error:
            raise SettingsError(f"out: {self.folder} cannot be created: {error}") from None


def origin_for(bundle: Bundle, settings: Inference, engine: str | None) -> str:
    """Digest of what label maps depend on beside the image: the bundle by its manifest, the settings, the engine."""
    parts = sha256(bundle.folder / MANIFEST), repr(settings), engine or bundle.manifest.engine.kind
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def find_masks(batch: Batch, masks: Masks) -> Batch:
    """Add the columns "labels_path", where it is missing, "found" and "error"; a task of Ray.

    They say whether there is a mask of this job, and why there can be none.

    Raises:
        SettingsError: there is no column "path".
    """
    if "path" not in batch:
        raise SettingsError("masks are named after the images: the dataset needs a column 'path'")
    if "labels_path" not in batch:
        batch["labels_path"] = np.array([masks.path(str(path)) for path in batch["path"]], object)
    count = len(batch["path"])
    found, errors = np.zeros(count, bool), objects([""] * count)
    if masks.resume:
        _compare_origins(masks, list(map(str, batch["labels_path"])), found, errors)
    return {**batch, "found": found, "error": errors}


def _compare_origins(masks: Masks, paths: Sequence[str], found: np.ndarray, errors: np.ndarray) -> None:
    """Set ``found`` where the file is a mask of this job, and ``errors`` where it is no result of this package."""
    infos = masks.filesystem.get_file_info(paths)
    there = [number for number, info in enumerate(infos) if info.type == fs.FileType.File and info.size > 0]
    with ThreadPoolExecutor(_READERS) as threads:
        origins = threads.map(lambda number: _origin_at(masks.filesystem, paths[number]), there)
    others = 0
    for number, origin in zip(there, origins, strict=True):
        if origin is None:
            errors[number] = (
                f"ImageError: {paths[number]} exists and is no mask of isnet_trt: move it, choose another out, or give "
                "resume=False, which replaces it"
            )
        found[number] = origin == masks.origin
        others += origin is not None and not found[number]
    if others:
        _log.warning("%d masks are of another bundle or of other settings; they are written again", others)


def _origin_at(system: Any, path: str) -> str | None:
    """`origin_of` the mask at ``path``; "" where it cannot be read: writing it again says why."""
    try:
        with system.open_input_file(path) as file:
            return origin_of(file.read(ORIGIN_HEAD))
    except (OSError, pyarrow.ArrowException):
        return ""


def write_mask(system: Any, path: str, content: bytes) -> None:
    """Write a file as a whole or not at all."""
    folder = PurePosixPath(path).parent
    system.create_dir(str(folder), recursive=True)
    if isinstance(system, fs.LocalFileSystem):
        write_file(Path(path), content, ImageError)
        return
    # Object stores show an object when its upload is complete; elsewhere a file appears by its renaming.
    whole = system.type_name in ("s3", "gcs", "abfs")
    temporary = path if whole else str(folder / f".{os.urandom(6).hex()}.part")
    with system.open_output_stream(temporary) as stream:
        stream.write(content)
    if not whole:
        system.move(temporary, path)


def objects(values: Sequence[Any]) -> np.ndarray:
    """A column whose elements stay as they are, also where all arrays have one shape."""
    column = np.empty(len(values), object)
    for number, value in enumerate(values):
        column[number] = value
    return column
