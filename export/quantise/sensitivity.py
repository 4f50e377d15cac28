"""Mixed precision: rank the blocks by what each costs in eight bits, and keep as few as possible in higher precision.

The ranking takes one evaluation a block, the search about log2 of their number more. The result, `Mix`, is stored
beside the bundle's calibration table and reused for the same graph, table, pictures, flavour and bound.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import onnx
from tqdm import tqdm

from isnet_trt.bundle.strict import decode
from isnet_trt.errors import BuildError
from isnet_trt.export.quantise.evaluate import Evaluate
from isnet_trt.export.quantise.formats import Flavour
from isnet_trt.export.quantise.insert import quantise
from isnet_trt.export.quantise.placement import Layer, quantisable_layers
from isnet_trt.export.quantise.table import Table, damaged_state, digest, read_state, write_errors
from isnet_trt.files import replacing
from isnet_trt.metrics import percent

SCHEMA = 1
MOST_BLOCKS = 24
"""Of networks other than ISNet: each block costs an evaluation."""
_DEPTHS = {"backbone_net": 3, "ilc_net": 2, "slc_net": 2}
_ISNET = {*_DEPTHS, "bottleneck", "decoder_stage1", "decoder_stage2", "shortcut"}
"""First parts of an ISNet's layer names, and the number of parts that name a block (default: 1; in the stem: 2)."""


@dataclass(frozen=True)
class BlockSensitivity:
    """Points lost when one block alone is in eight bits, and its share of all multiply-adds."""

    block: str
    drop: float
    share: float


@dataclass(frozen=True)
class Step:
    """One evaluation of the search: the first ``kept`` blocks of the ranking are in higher precision."""

    kept: int
    drop: float
    share: float
    """Share of the multiply-adds in eight bits."""


@dataclass(frozen=True)
class Mix:
    """The result of the search.

    ``baseline``: points of the float32 graph; ``ranking``: block with the largest loss first; ``skip``: blocks that
    `quantise` leaves in higher precision; ``drop``: points lost then.
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
    """Unit of the points of ``ranking``."""
    source: str = ""
    """SHA-256 of what else the result depends on: the calibration's inputs, and what graphs were evaluated on."""

    def summary(self) -> str:
        """The result in one line."""
        share = 1 - sum(entry.share for entry in self.ranking if entry.block in self.skip)
        return (
            f"blocks kept out of eight bits: {len(self.skip)}; in eight bits {percent(share, 1)} % of the "
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
        lines += [
            f"| {s.kept} | {percent(s.share, 1)} | {s.drop:.3f} |"
            for s in sorted(self.steps, key=lambda step: step.kept)
        ]
        lines += [
            f"\n| block alone in eight bits | its multiply-adds, % | {self.ranked_by or self.unit} lost, points |",
            "|---|---:|---:|",
        ]
        lines += [f"| {d.block} | {percent(d.share)} | {d.drop:.3f} |" for d in self.ranking]
        return "\n".join(lines)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``mix-<flavour>.json``, atomically.

        Raises:
            BuildError: it cannot be written.
        """
        path = _path(folder, self.flavour)
        with write_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_text(json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1), "utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike[str], flavour: Flavour) -> Mix:
        """Read a stored result.

        Raises:
            BuildError: there is none, or it cannot be read.
        """
        path = _path(folder, flavour)
        with damaged_state(path, "stored mix of precisions"):
            content = read_state(path)
            if content.pop("schema") != SCHEMA:
                raise ValueError("another schema")
            result: Mix = decode(cls, content)
            blocks_ranked = [entry.block for entry in result.ranking]
            if result.flavour != flavour or list(result.skip) != blocks_ranked[: len(result.skip)]:
                raise ValueError("its fields contradict each other")
        return result


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
    warn: Callable[[str], None] = lambda text: None,
) -> Mix:
    """Keep blocks in higher precision, those with the largest loss first, until at most ``max_drop`` points are lost.

    Args:
        proto: the float32 graph.
        table: its calibration.
        flavour: eight-bit format.
        max_drop: points of ``evaluate`` that may be lost.
        evaluate: decides whether the bound holds.
        rank: ranks the blocks, if something cheaper or finer than ``evaluate`` should.
        folder: where the result is stored. A stored result of the same graph, calibration, pictures (the
            ``fingerprint`` of the evaluations), flavour, unit and bound is returned without a search.
        progress: show a progress bar.
        warn: receives one line when a stored result is damaged and not used.

    Raises:
        BuildError: the bound is not met even with no block in eight bits (as every bound below 0).
    """
    source = _source(table, evaluate, rank or evaluate)
    if folder is not None and _path(folder, flavour).exists():
        try:
            stored = Mix.load(folder, flavour)
        except BuildError as error:  # costs a new search, not the build
            warn(f"warning: searching again: {error}")
        else:
            key = (digest(proto), evaluate.unit, max_drop, source)
            if (stored.graph, stored.unit, stored.max_drop, stored.source) == key:
                return stored
    search = _Search(proto, table, flavour, max_drop, evaluate, progress)
    result = replace(search.run(rank or evaluate), source=source)
    if folder is not None:
        result.save(folder)
    return result


def _source(table: Table, *evaluations: Evaluate) -> str:
    content = [table.source, *table.inputs, *(getattr(one, "fingerprint", "") for one in evaluations)]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


@dataclass
class _Search:
    proto: onnx.ModelProto
    table: Table
    flavour: Flavour
    max_drop: float
    evaluate: Evaluate
    progress: bool
    steps: dict[int, Step] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.blocks = blocks(quantisable_layers(self.proto, self.flavour))
        self.shares = self._shares()

    def _shares(self) -> dict[str, float]:
        """Block -> its share of the multiply-adds of all blocks: weights times output positions."""
        sizes = {tensor.name: math.prod(tensor.dims) for tensor in self.proto.graph.initializer}
        records = self.table.records
        work = {
            name: sum(sizes[layer.weight] * records[layer.result].positions for layer in layers)
            for name, layers in self.blocks.items()
        }
        return {name: value / sum(work.values()) for name, value in work.items()}

    def run(self, rank: Evaluate) -> Mix:
        self.baseline = self.evaluate(self.proto)
        ranking: tuple[BlockSensitivity, ...] = ()
        kept = 0
        # Everything in eight bits first: where that meets the bound, no ranking is needed.
        if self._step([]).drop > self.max_drop:
            ranking = self._rank(rank)
            kept = self._least([entry.block for entry in ranking])
        return Mix(
            graph=digest(self.proto),
            flavour=self.flavour,
            unit=self.evaluate.unit,
            max_drop=self.max_drop,
            baseline=self.baseline,
            ranking=ranking,
            steps=tuple(self.steps.values()),
            skip=tuple(entry.block for entry in ranking[:kept]),
            drop=self.steps[kept].drop,
            ranked_by=rank.unit,
        )

    def _rank(self, rank: Evaluate) -> tuple[BlockSensitivity, ...]:
        """Largest loss first; of equal losses the block with less work, which costs less to keep."""
        full = rank(self.proto)
        ranking = []
        for name in tqdm(self.blocks, "sensitivity", disable=None if self.progress else True):
            others = [other for other in self.blocks if other != name]
            ranking.append(BlockSensitivity(name, full - rank(self._quantised(others)), self.shares[name]))
        return tuple(sorted(ranking, key=lambda entry: (-entry.drop, entry.share)))

    def _least(self, order: Sequence[str]) -> int:
        """The smallest number of kept blocks that meets the bound, by bisection."""
        # That 0 kept blocks fail is known; that all kept ones suffice is checked after the loop only.
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
        # Some numbers are asked for twice, and an evaluation is the expensive part.
        if len(skip) not in self.steps:
            share = 1 - sum(self.shares[name] for name in skip)
            drop = self.baseline - self.evaluate(self._quantised(skip))
            self.steps[len(skip)] = Step(len(skip), drop, share)
        return self.steps[len(skip)]

    def _quantised(self, skip: Sequence[str]) -> onnx.ModelProto:
        return quantise(
            self.proto, self.table, self.flavour, [layer.name for name in skip for layer in self.blocks[name]]
        )


def blocks(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """Layers by block: of an ISNet a residual block, the stem, a part of a context module, a decoder.

    Blocks of another network are scopes of its layers' names: that with the most layers is divided by the next part of
    the names until there are `MOST_BLOCKS`.
    """
    if {layer.name.split(".")[0] for layer in layers} <= _ISNET:
        return _grouped(layers, _DEPTHS)
    result = _grouped(layers, {})
    while len(result) < MOST_BLOCKS:
        divided = {name: parts for name, group in result.items() if len(parts := _divided(name, group)) > 1}
        if not divided:
            break
        largest = max(divided, key=lambda name: len(result[name]))
        result = dict(
            item
            for name, group in result.items()
            for item in (divided[name] if name == largest else {name: group}).items()
        )
    return result


def _divided(scope: str, layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """A block divided by the next part of its layers' names; nothing where a layer has the name of the block."""
    depth = scope.count(".") + 2
    parts: dict[str, list[Layer]] = {}
    if any(layer.name == scope for layer in layers):
        return parts
    for layer in layers:
        parts.setdefault(".".join(layer.name.split(".")[:depth]), []).append(layer)
    # One part: further down it may divide.
    return _divided(*next(iter(parts.items()))) if len(parts) == 1 else parts


def _grouped(layers: Sequence[Layer], depths: Mapping[str, int]) -> dict[str, list[Layer]]:
    result: dict[str, list[Layer]] = {}
    for layer in layers:
        parts = layer.name.split(".")
        depth = 2 if parts[1:2] == ["stem"] and depths else depths.get(parts[0], 1)
        result.setdefault(".".join(parts[:depth]), []).append(layer)
    return result


def _path(folder: str | os.PathLike[str], flavour: Flavour) -> Path:
    return Path(folder) / f"mix-{flavour}.json"
