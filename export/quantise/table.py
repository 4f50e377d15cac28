"""The calibration table: statistics of each tensor, on disk as ``calibration.json`` and an .npz beside it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from isnet_trt.bundle.strict import decode
from isnet_trt.errors import BuildError
from isnet_trt.export.quantise.formats import Format, Scale
from isnet_trt.export.quantise.observers import Choice, choose
from isnet_trt.export.quantise.tensor_statistics import BINS, TensorStatistics
from isnet_trt.files import regular_file_bytes, replacing

JSON = "calibration.json"
SCHEMA = 1
_LARGEST_STATE = 2**30
_LARGEST_COUNTS = 2 * BINS * 8 + 1024
"""Bytes of one tensor's histogram with the header of its file."""


@dataclass
class Table:
    """Statistics by tensor name.

    One table serves every flavour: ranges are chosen when a graph is quantised.

    Attributes:
        graph: SHA-256 of the float32 graph.
        source: fingerprint of what the network inputs were made from.
        inputs: names of the network inputs, in order.
        records: tensor name -> statistics.
    """

    graph: str = ""
    source: str = ""
    inputs: list[str] = field(default_factory=list)
    records: dict[str, TensorStatistics] = field(default_factory=dict)
    _chosen: dict[tuple[str, str], Choice] = field(default_factory=dict, repr=False)

    def choice(self, tensor: str, form: Format) -> Choice:
        """The best range of a tensor for a format (`observers.choose`), computed once.

        Raises:
            BuildError: the tensor was not calibrated.
        """
        if tensor not in self.records:
            raise BuildError(
                f"the calibration table knows no tensor {tensor!r}: it belongs to another graph, or that graph's "
                "tensors were renamed; calibrate again"
            )
        key = (tensor, form.name)
        if key not in self._chosen:
            self._chosen[key] = choose(self.records[tensor], form)
        return self._chosen[key]

    def scale(self, tensor: str, form: Format) -> Scale:
        """Scale and zero point for the best range."""
        choice = self.choice(tensor, form)
        return form.fit(choice.low, choice.high)

    def observers_taken(self, form: Format) -> dict[str, int]:
        """Observer -> number of tensors whose range it gave, of those whose scale has been asked for."""
        return dict(Counter(choice.observer for (_, name), choice in self._chosen.items() if name == form.name))

    def idle(self) -> list[str]:
        """Tensors that were zero on every input; they are stored with scale 1."""
        return [name for name, statistics in self.records.items() if statistics.low == statistics.high == 0]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the table atomically: a reader sees the old one or this one.

        Raises:
            BuildError: it cannot be written; what was there before stays.
        """
        target = Path(folder)
        arrays, archive = f"calibration-{len(self.inputs)}.npz", io.BytesIO()
        counts = {f"{name}\ncounts": statistics.counts for name, statistics in self.records.items()}
        np.savez(archive, **counts)  # type: ignore[arg-type]
        content = {
            "schema": SCHEMA,
            "graph": self.graph,
            "source": self.source,
            "arrays": arrays,
            "arrays_sha256": hashlib.sha256(archive.getvalue()).hexdigest(),
            "inputs": self.inputs,
            "tensors": {name: statistics.numbers() for name, statistics in self.records.items()},
        }
        with write_errors(target):
            target.mkdir(parents=True, exist_ok=True)
            # The arrays first, under a name of their own: until the JSON names them, readers find the old pair.
            with replacing(target / arrays) as path:
                path.write_bytes(archive.getvalue())
            with replacing(target / JSON) as path:
                path.write_text(json.dumps(content, indent=1), "utf-8")
            # Last, when nothing names the old arrays any more.
            for old in target.glob("calibration-*.npz"):
                if old.name != arrays:
                    old.unlink()

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Table:
        """Read a table.

        Raises:
            BuildError: there is none, or it is damaged, not whole, or has another schema.
        """
        path = Path(folder) / JSON
        if not os.path.lexists(path):
            raise BuildError(f"{path} does not exist: no calibration table is there")
        with damaged_state(path, "calibration table"):
            content = read_state(path)
            if content["schema"] != SCHEMA:
                raise BuildError(
                    f"{path} has schema {content['schema']!r:.40}, this isnet_trt reads {SCHEMA}; remove it"
                )
            stored = decode(_Stored, {"arrays_sha256": "", **content})
            counts = _read_counts(path, stored)
            records = {
                name: TensorStatistics.from_numbers(name, numbers, len(stored.inputs), counts[f"{name}\ncounts"])
                for name, numbers in stored.tensors.items()
            }
        return cls(stored.graph, stored.source, list(stored.inputs), records)


@dataclass(frozen=True)
class _Stored:
    """Content of ``calibration.json``; versions before ``arrays_sha256`` wrote none."""

    schema: int
    graph: str
    source: str
    arrays: str
    arrays_sha256: str
    inputs: tuple[str, ...]
    tensors: dict[str, Any]


def _read_counts(path: Path, stored: _Stored) -> dict[str, NDArray[np.int64]]:
    """The histograms of the archive that ``path`` names; ValueError if it is another one or too large."""
    if not re.fullmatch(r"calibration-\d+\.npz", stored.arrays):
        raise ValueError(f"{stored.arrays!r} is no archive of histograms")
    archive = regular_file_bytes(path.with_name(stored.arrays), _LARGEST_STATE, BuildError)
    # A build killed between its two files leaves its archive beside the JSON of the one before.
    if stored.arrays_sha256 not in ("", hashlib.sha256(archive).hexdigest()):
        raise ValueError(f"{stored.arrays} is not the archive that belongs to it")
    with np.load(io.BytesIO(archive), allow_pickle=False) as arrays:
        if max((member.file_size for member in arrays.zip.infolist()), default=0) > _LARGEST_COUNTS:
            raise ValueError(f"{stored.arrays} holds arrays that are too large")
        return dict(arrays)


def read_state(path: Path) -> dict[str, Any]:
    """The JSON object that an earlier build stored; its numbers are finite.

    Raises:
        BuildError: it cannot be read or is too large.
        ValueError, RecursionError: it is no such JSON.
    """

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(f"{text} is no finite number")
        return number

    text = regular_file_bytes(path, _LARGEST_STATE, BuildError).decode("utf-8")
    content = json.loads(text, parse_constant=finite, parse_float=finite)
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    return content


@contextlib.contextmanager
def damaged_state(path: Path, kind: str) -> Iterator[None]:
    """Re-raise whatever reading the stored ``path`` raises as BuildError, which says to remove it."""
    try:
        yield
    except BuildError:
        raise
    except Exception as error:  # of json, zipfile, zlib and numpy, each with a family of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BuildError(f"{path} is no {kind}, or not a whole one ({reason[:200]}); remove it") from None


@contextlib.contextmanager
def write_errors(folder: Path) -> Iterator[None]:
    """Re-raise an OSError of writing to the calibration's folder as BuildError."""
    try:
        yield
    except OSError as error:
        raise BuildError(
            f"{folder} cannot be written ({error.strerror or error}): calibration and search are kept there for the "
            "next build; make room, or choose another --out"
        ) from error


def check_writable(folder: Path, tensors: int = 1) -> None:
    """Raise BuildError, before hours of work, if ``folder`` cannot take the table of so many tensors."""
    if folder.exists() and not folder.is_dir():
        raise BuildError(f"{folder} is no folder: the calibration table is kept there; move it away")
    with write_errors(folder):
        place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=place) as trial:
            for _ in range(tensors):
                trial.write(bytes(_LARGEST_COUNTS))


def digest(proto: ModelProto) -> str:
    """SHA-256 of a graph and its weights, in hex."""
    # protobuf may write one message in several ways; only the deterministic form can be compared.
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
