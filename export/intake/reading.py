"""Reading ONNX files of others: regular files of bounded size; external data from the file's own folder only."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePosixPath

import onnx

from isnet_trt.errors import BuildError, IsnetError
from isnet_trt.export.onnx_edit import MAX_PROTOBUF, from_bytes
from isnet_trt.files import open_regular, regular_file_bytes

LARGEST_EXTERNAL = 16 << 30
"""Bytes of a file of external data."""


def read_onnx(path: Path) -> tuple[onnx.ModelProto, str]:
    """The graph in a file with its external data in memory, and the SHA-256 (hex) of all the files that were read.

    Raises:
        BuildError: a file is missing, incomplete, outside the graph's folder or no ONNX graph.
    """
    content = regular_file_bytes(path, MAX_PROTOBUF, BuildError)
    digest = hashlib.sha256(content)

    def read(name: str) -> bytes:
        data = _external(path, name)
        digest.update(data)
        return data

    try:
        proto = from_bytes(content, read)
    except IsnetError:
        raise
    except Exception as error:  # protobuf's errors have no common base with onnx's
        raise BuildError(f"{path} cannot be read as an ONNX graph: {error}") from None
    if not proto.graph.node or not proto.graph.output:
        raise BuildError(f"{path} cannot be read as an ONNX graph: it has no nodes or no output")
    return proto, digest.hexdigest()


def _external(path: Path, name: str) -> bytes:
    """A file of external data beside the graph in ``path``."""
    place = PurePosixPath(name)
    # A location such as ../../secret would copy any file of this machine into the bundle.
    if not name or place.is_absolute() or ".." in place.parts or "\\" in name or ":" in name:
        raise BuildError(
            f"{path} has external data in {name!r}, which is not a file below its own folder: do not trust it"
        )
    target = path.parent / place
    try:
        with open_regular(target, follow_links=False) as stream:
            if os.fstat(stream.fileno()).st_size > LARGEST_EXTERNAL:
                raise BuildError(f"{target} is too large: more than {LARGEST_EXTERNAL >> 30} GiB")
            return stream.read()
    except FileNotFoundError:
        raise BuildError(
            f"{path} keeps its weights in {name}, which is not beside it; copy {target.name} into {target.parent}"
        ) from None
    except OSError as error:
        raise BuildError(
            f"{target}, the external data of {path.name}, cannot be read: {error.strerror or error}"
        ) from None
