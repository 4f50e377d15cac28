"""Which blocks may be in eight bits: the damage of each alone, then as few as possible kept in higher precision.

The ranking costs one evaluation a block, the search about log2 of their number more. All of it is kept in `Mix`, which
is stored beside the bundle's calibration table and taken again for the same graph, table, pictures, flavour and bound.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import onnx
from tqdm import tqdm

from isnet_trt.errors import BuildError
from isnet_trt.export.quantise.evaluate import Evaluate
from isnet_trt.export.quantise.formats import Flavour
from isnet_trt.export.quantise.insert import quantise
from isnet_trt.export.quantise.placement import Layer, multiplications, quantisable_layers
from isnet_trt.export.quantise.table import Table, atomic_write, digest, write_errors

SCHEMA = 1


@dataclass(frozen=True)
class BlockSensitivity:
    """What one block costs when it alone is in eight bits: ``drop`` in points; its share of all multiply-adds."""

    block: str
    drop: float
    share: float


@dataclass(frozen=True)
class Step:
    """A point of the search: the first ``kept`` blocks of the ranking in higher precision."""

    kept: int
    drop: float
    share: float
    """Share of the multiply-adds in eight bits."""


@dataclass(frozen=True)
class Mix:
    """The result of the search.

    ``baseline``: points of the float32 graph; ``ranking``: most damaging block first; ``skip``: what `quantise` leaves
    in higher precision; ``drop``: what is lost then.
    """

    graph: str
    flavour: Flavour
    unit: str
    max_drop: float
    baseline: float
    ranking: tuple[BlockSensitivity, ...]
    steps: tuple[Step, ...]
    skip: tuple[str, ...]
    drop: float
    ranked_by: str = ""
    """What the points of ``ranking`` are of, where it is not ``unit``."""
    source: str = ""
    """SHA-256 of what else the search hung on: the calibration's inputs, and what graphs were evaluated on."""

    def summary(self) -> str:
        """What was found, in one line."""
        share = 1 - sum(one.share for one in self.ranking if one.block in self.skip)
        return (
            f"blocks kept out of eight bits: {len(self.skip)}; in eight bits {100 * share:.1f} % of the "
            f"multiply-adds; {self.drop:.2f} points of {self.unit} lost"
        )

    def markdown(self) -> str:
        """The search and the ranking as two tables."""
        lines = [
            f"Bound: {self.max_drop:g} points of {self.unit}; float32 has {self.baseline:.2f}. Kept in higher "
            f"precision: {', '.join(self.skip) or 'nothing'}. Lost: {self.drop:.2f}.\n",
            f"| blocks kept | multiply-adds in eight bits, % | {self.unit} lost, points |",
            "|---:|---:|---:|",
        ]
        lines += [f"| {s.kept} | {100 * s.share:.1f} | {s.drop:.3f} |" for s in sorted(self.steps, key=_kept)]
        lines += [
            f"\n| block alone in eight bits | its multiply-adds, % | {self.ranked_by or self.unit} lost, points |",
            "|---|---:|---:|",
        ]
        lines += [f"| {d.block} | {100 * d.share:.2f} | {d.drop:.3f} |" for d in self.ranking]
        return "\n".join(lines)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``mix-<flavour>.json``, atomically.

        Raises:
            BuildError: it cannot be written.
        """
        path = _path(folder, self.flavour)
        with write_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(path)

    def _write(self, path: Path) -> None:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1), "utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike[str], flavour: Flavour) -> Mix:
        """Read a stored result.

        Raises:
            BuildError: there is none, or it cannot be read.
        """
        path = _path(folder, flavour)
        try:
            content = json.loads(path.read_text("utf-8"))
            if content.pop("schema") != SCHEMA:
                raise ValueError("another schema")
            ranking = tuple(BlockSensitivity(**entry) for entry in content.pop("ranking"))
            steps = tuple(Step(**entry) for entry in content.pop("steps"))
            return cls(**{**content, "skip": tuple(content["skip"]), "ranking": ranking, "steps": steps})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BuildError(f"{path} is no stored mix of precisions ({error}); remove it") from None


def find_mix(
    proto: onnx.ModelProto,
    table: Table,
    flavour: Flavour,
    max_drop: float,
    evaluate: Evaluate,
    *,
    rank: Evaluate | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Mix:
    """Keep blocks in higher precision, the most damaging first, until no more than ``max_drop`` points are lost.

    ``rank`` ranks the blocks where that should be cheaper or finer than ``evaluate``, which decides. With ``folder``
    the result is stored there, and one that is there already, of the same graph, calibration, pictures (the
    ``fingerprint`` of the evaluations), flavour, unit and bound, is returned.

    Raises:
        BuildError: the bound is not met even with no block in eight bits (it never is below 0).
    """
    source = _source(table, evaluate, rank or evaluate)
    if folder is not None and _path(folder, flavour).exists():
        known = Mix.load(folder, flavour)
        asked = (digest(proto), evaluate.unit, max_drop, source)
        if (known.graph, known.unit, known.max_drop, known.source) == asked:
            return known
    search = _Search(proto, table, flavour, max_drop, evaluate, progress)
    result = replace(search.run(rank or evaluate), source=source)
    if folder is not None:
        result.save(folder)
    return result


def _source(table: Table, *evaluations: Evaluate) -> str:
    content = [table.source, *table.inputs, *(getattr(one, "fingerprint", "") for one in evaluations)]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


class _Search:
    def __init__(
        self,
        proto: onnx.ModelProto,
        table: Table,
        flavour: Flavour,
        max_drop: float,
        evaluate: Evaluate,
        progress: bool,
    ) -> None:
        self.proto, self.table, self.flavour = proto, table, flavour
        self.max_drop, self.evaluate, self.progress = max_drop, evaluate, progress
        self.blocks = blocks(quantisable_layers(proto, flavour))
        self.shares = self._shares()
        self.steps: dict[int, Step] = {}

    def _shares(self) -> dict[str, float]:
        work = {
            name: sum(multiplications(one, self.proto, self.table.records[one.result].positions) for one in members)
            for name, members in self.blocks.items()
        }
        return {name: value / sum(work.values()) for name, value in work.items()}

    def run(self, rank: Evaluate) -> Mix:
        self.baseline = self.evaluate(self.proto)
        if self._step([]).drop <= self.max_drop:
            ranking: tuple[BlockSensitivity, ...] = ()
            kept = 0
        else:
            ranking = self._rank(rank)
            kept = self._least([one.block for one in ranking])
        skip = tuple(one.block for one in ranking[:kept])
        return Mix(
            digest(self.proto),
            self.flavour,
            self.evaluate.unit,
            self.max_drop,
            self.baseline,
            ranking,
            tuple(self.steps.values()),
            skip,
            self.steps[kept].drop,
            rank.unit,
        )

    def _rank(self, rank: Evaluate) -> tuple[BlockSensitivity, ...]:
        """Most damaging first; of equals the one with less work, which costs less to keep."""
        full = rank(self.proto)
        found = []
        for name in tqdm(self.blocks, "sensitivity", disable=None if self.progress else True):
            others = [other for other in self.blocks if other != name]
            drop = full - rank(quantise(self.proto, self.table, self.flavour, self._names(others)))
            found.append(BlockSensitivity(name, drop, self.shares[name]))
        return tuple(sorted(found, key=lambda one: (-one.drop, one.share)))

    def _least(self, order: Sequence[str]) -> int:
        """The smallest number of kept blocks that the bisection finds to meet the bound."""
        low, high = 0, len(order)
        while high - low > 1:
            middle = (low + high) // 2
            if self._step(order[:middle]).drop <= self.max_drop:
                high = middle
            else:
                low = middle
        if self._step(order[:high]).drop > self.max_drop:
            raise BuildError(f"more than {self.max_drop:g} points are lost with nothing in eight bits")
        return high

    def _step(self, skip: Sequence[str]) -> Step:
        if len(skip) not in self.steps:
            graph = quantise(self.proto, self.table, self.flavour, self._names(skip))
            share = 1 - sum(self.shares[name] for name in skip)
            self.steps[len(skip)] = Step(len(skip), self.baseline - self.evaluate(graph), share)
        return self.steps[len(skip)]

    def _names(self, chosen: Sequence[str]) -> list[str]:
        return [layer.name for name in chosen for layer in self.blocks[name]]


def blocks(found: Sequence[Layer]) -> dict[str, list[Layer]]:
    """Layers by block: a residual block, the stem, a part of a context module, a decoder."""
    result: dict[str, list[Layer]] = {}
    for layer in found:
        parts = layer.name.split(".")
        depth = {"backbone_net": 2 if parts[1] == "stem" else 3, "ilc_net": 2, "slc_net": 2}.get(parts[0], 1)
        result.setdefault(".".join(parts[:depth]), []).append(layer)
    return result


def _kept(step: Step) -> int:
    return step.kept


def _path(folder: str | os.PathLike[str], flavour: Flavour) -> Path:
    return Path(folder) / f"mix-{flavour}.json"
