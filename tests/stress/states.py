"""Mutated state of earlier runs: each is taken whole, or refused by the project's own error, and nothing changes.

    python tests/stress/states.py --cases 10000

A calibration table (JSON and its archive), the state that --resume reads, and the tables of a run are mutated as trees,
as bytes, and as text. A state that is refused must leave the trainer, and the record of the run, as they were.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import fuzzing
import mutations
import probe

sys.path.insert(1, str(probe.TESTS / "training"))

import numpy as np
import tiny_training
import torch

from isnet_trt.errors import IsnetError
from isnet_trt.export.quantise.table import JSON, Table
from isnet_trt.export.quantise.tensor_statistics import TensorStatistics
from isnet_trt.training import tables
from isnet_trt.training.options import Options
from isnet_trt.training.run_folder import LATEST, RunFolder
from isnet_trt.training.trainer import Trainer

INPUTS = 3
CSV = "epochs.csv"
HEADER = ("iteration", "epoch", "miou", "accuracy")
TENSORS = (torch.zeros(3), torch.tensor(math.nan), torch.full((4, 3, 3, 3), math.inf), torch.ones(2).int())
STATES = (*mutations.VALUES, *TENSORS)
CELLS = ("", "x", "-1", "0", "1e5", "nan", "٣", "9" * 30, '"', "a\0", "4", "39", "é", " 5", "0x10", "1_0", ["1", "2"])
KINDS = {"calibration": 40, "archive": 15, "resume": 10, "table": 30, "file": 5}


def calibration() -> Table:
    """A table of three tensors and three inputs."""
    random_numbers = np.random.default_rng(0)
    table = Table("a" * 64, "b" * 64, [f"{i:02}.png" for i in range(INPUTS)])
    for name in ("image", "/backbone/conv", "logits"):
        statistics = table.records[name] = TensorStatistics()
        for _ in range(INPUTS):
            statistics.add(name, random_numbers.standard_normal((1, 8, 16, 16), np.float32))
    return table


class States:
    """Mutations of the state that builds and training runs leave for the next one."""

    memory = 1 << 30
    batch = 2500

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.table = calibration()

    def start(self, folder: Path) -> None:
        """Save the calibration and a run of a few iterations, and read both back."""
        torch.set_num_threads(1)
        repr(torch.zeros(1))  # imports what messages with tensors need
        self.table.save(folder)
        self.json, self.archive = (folder / JSON).read_bytes(), next(folder.glob("*.npz"))
        self.counts, self.tree = self.archive.read_bytes(), json.loads(self.json)
        options = Options(folder, 2, 2, seed=5, workers=0, amp="fp16", stop_after=5)
        self.run = Trainer(tiny_training.TINY, options, tiny_training.data())
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            self.run.run()
        self.state = torch.load(folder / LATEST, weights_only=True)
        mutations.clear(folder / LATEST)
        self.rows = "".join(f"{i},{(i + 3) // 4},{i / 50:.4f},{'nan' if i == 9 else 0.5}\n" for i in range(4, 40))
        for kind in KINDS:
            self.kind = kind if kind != "file" else "resume"
            self._write_sound(folder)
            assert self.read(folder) == fuzzing.RIGHT, kind

    def _write_sound(self, folder: Path) -> None:
        mutations.put(folder / JSON, self.json)
        mutations.put(folder / self.archive.name, self.counts)
        mutations.put(folder / LATEST, self._saved(self.state))
        mutations.put(folder / CSV, self._csv())

    def write(self, number: int, folder: Path) -> str:
        """Write mutation ``number``; other files of the case are sound."""
        chance = random.Random(number)
        self.kind = chance.choices(tuple(KINDS), tuple(KINDS.values()))[0]
        if self.kind == "file":
            self.kind = chance.choice(("calibration", "resume", "table"))
            return f"{self.kind}: {mutations.special_file(chance, Path(self.subject(folder)))}"
        if self.kind == "archive":
            self._write_archive(chance, folder)
        elif self.kind == "calibration":
            mutations.put(folder / self.archive.name, self.counts)
            mutations.put(folder / JSON, mutations.mutated_json(chance, self.tree))
        elif self.kind == "resume":
            mutations.put(folder / LATEST, self._saved(mutations.mutated_tree(chance, self.state, STATES)))
        else:
            mutations.put(folder / CSV, self._mutated_csv(chance))
        return self.kind

    def _write_archive(self, chance: random.Random, folder: Path) -> None:
        """A mutated archive, half of the time with its own checksum in the JSON."""
        content, tree = mutations.mutated_bytes(chance, self.counts), dict(self.tree)
        if chance.random() < 0.5:
            tree["arrays_sha256"] = hashlib.sha256(content).hexdigest()
        mutations.put(folder / self.archive.name, content)
        mutations.put(folder / JSON, json.dumps(tree).encode())

    @staticmethod
    def _saved(state: Any) -> bytes:
        stream = io.BytesIO()
        torch.save(state, stream)
        return stream.getvalue()

    def _csv(self) -> bytes:
        return f"{','.join(HEADER)}\n{self.rows}".encode()

    def _mutated_csv(self, chance: random.Random) -> bytes:
        if chance.random() < 0.4:
            return mutations.mutated_bytes(chance, self._csv(), header=60)
        lines = [line.split(",") for line in self._csv().decode().splitlines()]
        lines = [",".join(map(str, line)) for line in mutations.mutated_tree(chance, lines, CELLS)]
        text = chance.choice(("\n", "\r\n", "\r")).join(lines) + chance.choice(("\n", ""))
        return text.encode(chance.choice(("utf-8", "utf-16", "latin-1")), "replace")

    def read(self, folder: Path) -> str:
        """Take the state, as the next build or run would."""
        if self.kind in ("calibration", "archive"):
            return self._read_calibration(folder)
        return self._resume(folder) if self.kind == "resume" else self._read_table(folder)

    @staticmethod
    def _read_calibration(folder: Path) -> str:
        table = Table.load(folder)
        numbers = [value for record in table.records.values() for value in dataclasses.astuple(record)[:3]]
        finite = all(math.isfinite(x) for x in numbers if isinstance(x, int | float))
        return fuzzing.RIGHT if finite else "a range that is not finite"

    def _resume(self, folder: Path) -> str:
        before = {name: tensor.clone() for name, tensor in self.run.model.state_dict().items()}
        self.run.files = RunFolder(folder)
        try:
            self.run.resume()
        except IsnetError:
            after = self.run.model.state_dict()
            if not all(torch.equal(after[name], before[name]) for name in before):
                return "a state that was refused has changed the model"
            raise
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in self.run.model.state_dict().values())
        return fuzzing.RIGHT if finite and self.run.iteration >= 0 else "weights or an iteration that cannot be"

    @staticmethod
    def _read_table(folder: Path) -> str:
        """Read the rows up to a checkpoint in the middle."""
        before = (folder / CSV).read_bytes() if (folder / CSV).is_file() else None
        rows = tables.Table(folder / CSV, HEADER).read(last=30)
        numbers = [int(row[0]) for row in rows]
        if numbers != sorted(set(numbers)) or not all(
            len(row) == len(HEADER) and 0 < int(row[0]) <= 30 for row in rows
        ):
            return f"rows that cannot be: {rows}"
        changed = before is not None and (folder / CSV).read_bytes() != before
        return "the file was changed" if changed else fuzzing.RIGHT

    def subject(self, folder: Path) -> str:
        """The file that is mutated; the JSON where its archive is."""
        files = {"calibration": JSON, "archive": JSON, "resume": LATEST, "table": CSV}
        return str(folder / files[self.kind])


if __name__ == "__main__":
    sys.exit(fuzzing.run(States(), probe.parser(__doc__, 10_000).parse_args()))
