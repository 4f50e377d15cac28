"""The calibration table: what was observed of each tensor, on disk as ``calibration.json`` and an .npz beside it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from onnx import ModelProto

from isnet_trt.errors import BuildError
from isnet_trt.export.quantise.formats import Format, Scale
from isnet_trt.export.quantise.observers import Choice, choose
from isnet_trt.export.quantise.tensor_statistics import TensorStatistics

JSON = "calibration.json"
SCHEMA = 1


@dataclass
class Table:
    """Observations by tensor name, of the graph with the SHA-256 ``graph``, over ``inputs`` (their names, in order).

    ``source`` is the fingerprint of what made the inputs.

    One table serves every flavour: ranges are chosen when a graph is quantised. ``observers`` limits that choice to
    some of `observers.OBSERVERS`; empty means all.
    """

    graph: str = ""
    source: str = ""
    inputs: list[str] = field(default_factory=list)
    records: dict[str, TensorStatistics] = field(default_factory=dict)
    observers: tuple[str, ...] = ()
    _chosen: dict[tuple, Choice] = field(default_factory=dict, repr=False)

    def choice(self, tensor: str, form: Format) -> Choice:
        """The best range of a tensor for a format; see `observers.choose`. Worked out once.

        Raises:
            BuildError: the tensor was not calibrated.
        """
        if tensor not in self.records:
            raise BuildError(
                f"the calibration table knows no tensor {tensor!r}: it belongs to another graph, or that graph's "
                "tensors were renamed; calibrate again"
            )
        key = (tensor, form.name, self.observers)
        if key not in self._chosen:
            self._chosen[key] = choose(self.records[tensor], form, self.observers)
        return self._chosen[key]

    def scale(self, tensor: str, form: Format) -> Scale:
        """Scale and zero point of that range."""
        choice = self.choice(tensor, form)
        return form.fit(choice.low, choice.high)

    def observers_taken(self, form: Format) -> dict[str, int]:
        """Observer -> for how many tensors its range was taken, of those that a scale was asked for so far."""
        return dict(Counter(one.observer for (_, name, _), one in self._chosen.items() if name == form.name))

    def idle(self) -> list[str]:
        """Tensors that were zero on every input; they are stored with scale 1."""
        return [name for name, seen in self.records.items() if seen.low == seen.high == 0]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the table; a reader sees the old one or this one, whole.

        Raises:
            BuildError: it cannot be written; what was there before stays.
        """
        target = Path(folder)
        with write_errors(target):
            self._write(target)

    def _write(self, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        arrays = f"calibration-{len(self.inputs)}.npz"
        with atomic_write(target / arrays) as path, path.open("wb") as stream:
            every = ((name, *pair) for name, seen in self.records.items() for pair in seen.arrays().items())
            _savez(stream, {f"{name}\n{key}": array for name, key, array in every})
        content = {
            "schema": SCHEMA,
            "graph": self.graph,
            "source": self.source,
            "arrays": arrays,
            "inputs": self.inputs,
            "tensors": {name: seen.numbers() for name, seen in self.records.items()},
        }
        with atomic_write(target / JSON) as path:
            path.write_text(json.dumps(content, indent=1), "utf-8")
        for old in target.glob("calibration-*.npz"):
            if old.name != arrays:
                old.unlink()

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Table:
        """Read a table.

        Raises:
            BuildError: there is none, or it is damaged or of another version.
        """
        path = Path(folder) / JSON
        try:
            content = json.loads(path.read_text("utf-8"))
            if content["schema"] != SCHEMA:
                raise BuildError(f"{path} has schema {content['schema']}, this isnet_trt reads {SCHEMA}; remove it")
            with np.load(path.with_name(content["arrays"]), allow_pickle=False) as stored:
                records = {name: _record(stored, name, numbers) for name, numbers in content["tensors"].items()}
            return cls(content["graph"], content["source"], list(content["inputs"]), records)
        except FileNotFoundError as error:
            raise BuildError(f"{error.filename} does not exist: no calibration table is there") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BuildError(f"{path} is no calibration table ({error}); remove the folder's table") from None


def _savez(stream: IO[bytes], arrays: dict[str, Any]) -> None:
    np.savez(stream, **arrays)


def _record(stored: np.lib.npyio.NpzFile, name: str, numbers: dict) -> TensorStatistics:
    arrays: dict[str, Any] = {key: stored[f"{name}\n{key}"] for key in TensorStatistics().arrays()}
    return TensorStatistics(**numbers, **arrays)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path beside ``path`` whose file takes its place when the block ends well and is removed otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def write_errors(folder: Path) -> Iterator[None]:
    """What the file system refuses in the calibration's folder, as BuildError."""
    try:
        yield
    except OSError as error:
        raise BuildError(
            f"{folder} cannot be written ({error.strerror or error}): calibration and search are kept there for the "
            "next build; make room, or choose another --out"
        ) from error


def digest(proto: ModelProto) -> str:
    """SHA-256 of a graph and its weights, in hex."""
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
