"""The calibration table: statistics of each tensor, on disk as ``calibration.json`` and an .npz beside it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import ModelProto

from isnet_trt.errors import BuildError
from isnet_trt.export.quantise.formats import Format, Scale
from isnet_trt.export.quantise.observers import Choice, choose
from isnet_trt.export.quantise.tensor_statistics import TensorStatistics
from isnet_trt.files import replacing

JSON = "calibration.json"
SCHEMA = 1


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
        arrays = f"calibration-{len(self.inputs)}.npz"
        content = {
            "schema": SCHEMA,
            "graph": self.graph,
            "source": self.source,
            "arrays": arrays,
            "inputs": self.inputs,
            "tensors": {name: statistics.numbers() for name, statistics in self.records.items()},
        }
        with write_errors(target):
            target.mkdir(parents=True, exist_ok=True)
            # The arrays first, under a name of their own: until the JSON names them, readers find the old pair.
            with replacing(target / arrays) as path, path.open("wb") as stream:
                counts = {f"{name}\ncounts": statistics.counts for name, statistics in self.records.items()}
                np.savez(stream, **counts)  # type: ignore[arg-type]
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
            BuildError: there is none, or it is damaged or has another schema.
        """
        path = Path(folder) / JSON
        try:
            content = json.loads(path.read_text("utf-8"))
            if content["schema"] != SCHEMA:
                raise BuildError(f"{path} has schema {content['schema']}, this isnet_trt reads {SCHEMA}; remove it")
            with np.load(path.with_name(content["arrays"]), allow_pickle=False) as stored:
                records = {
                    name: TensorStatistics.from_numbers(numbers, stored[f"{name}\ncounts"])
                    for name, numbers in content["tensors"].items()
                }
            return cls(content["graph"], content["source"], list(content["inputs"]), records)
        except FileNotFoundError as error:
            raise BuildError(f"{error.filename} does not exist: no calibration table is there") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BuildError(f"{path} is no calibration table ({error}); remove the folder's table") from None


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


def digest(proto: ModelProto) -> str:
    """SHA-256 of a graph and its weights, in hex."""
    # protobuf may write one message in several ways; only the deterministic form can be compared.
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
