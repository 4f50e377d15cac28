"""TensorRT-RTX's runtime cache: kernels that it compiled for this GPU, kept in a file for the next process.

The file lies in the folder that ``ISNET_TRT_RUNTIME_CACHE`` names; without that variable nothing is kept, since
segmenting writes no files unless it is told to. The file's name depends on GPU, driver, library version and engine, and
the library itself refuses what does not fit the machine. Whatever is wrong with file or folder, the engine works
without it.

https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-with-runtime-cache.html
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from pathlib import Path
from typing import Any

from isnet_trt.cuda.gpu import Gpu
from isnet_trt.engines.library import EngineSource
from isnet_trt.errors import EngineError
from isnet_trt.files import regular_file_bytes, write_file

_log = logging.getLogger(__name__)
FOLDER_VARIABLE = "ISNET_TRT_RUNTIME_CACHE"
SUFFIX = ".rtxcache"
FILES = 8
"""Files that are kept in a folder: those last used."""
LARGEST = 1 << 28
"""Bytes of a file."""


class RuntimeCache:
    """The kernels of one engine; to be kept as long as the contexts that are created with ``config``.

    ``path`` is its file; None: nothing is loaded or saved. The device is current in every call.
    """

    def __init__(self, config: Any, path: Path | None) -> None:
        self._path = path
        self._content = b""
        self._cache: Any = None
        create = getattr(config, "create_runtime_cache", None)  # since TensorRT-RTX 1.0
        if path is None or create is None:
            return
        self._cache = create()
        self._load(path)
        if self._cache is not None and not config.set_runtime_cache(self._cache):
            self._disable("the library does not take it")

    def _load(self, path: Path) -> None:
        if not os.path.lexists(path):
            return
        try:
            _check_owner(path)
            content = regular_file_bytes(path, LARGEST, error_type=EngineError)
        except (EngineError, OSError) as error:
            self._disable(str(error))
            return
        if not self._cache.deserialize(content):  # damaged, or of another machine
            _log.info("%s does not fit this machine or is damaged; it will be written again", path)
            return
        self._content = content
        with contextlib.suppress(OSError):
            os.utime(path)  # it counts as used

    def save(self) -> None:
        """Write what has been compiled since, if anything was; a failure is logged, and no other is tried."""
        if self._cache is None or self._path is None:
            return
        content = bytes(self._cache.serialize() or b"")
        if not content or content == self._content or len(content) > LARGEST:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._path, content, EngineError)
            _evict(self._path.parent)
        except (EngineError, OSError) as error:
            self._disable(str(error))
            return
        self._content = content
        _log.info("%s: %d bytes of compiled kernels", self._path, len(content))

    def _disable(self, reason: str) -> None:
        _log.info("without a runtime cache: %s", reason)
        self._path = None


def cache_file(source: EngineSource, gpu: Gpu, version: str) -> Path | None:
    """The file for an engine on a GPU under a version of the library; None where none is to be used.

    Only engines of finished bundles have one: those that a build tries are still in its temporary folder.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    if source.content is None or not folder:
        return None
    parts = (gpu.name, gpu.compute_capability, gpu.driver, version, hashlib.sha256(source.content.model).hexdigest())
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32] + SUFFIX
    return Path(folder).absolute() / name


def _check_owner(path: Path) -> None:
    """Raise EngineError for a file of another user, who could have put any code into it."""
    owner = path.stat().st_uid
    if hasattr(os, "geteuid") and owner not in (0, os.geteuid()):
        raise EngineError(f"{path} belongs to another user ({owner}); remove it, or name another folder")


def _evict(folder: Path) -> None:
    """Remove the files that were not used for the longest time."""
    files = sorted(folder.glob(f"*{SUFFIX}"), key=lambda file: file.stat().st_mtime)
    for file in files[:-FILES]:
        file.unlink(missing_ok=True)
