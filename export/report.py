"""The accuracy report of a build: ``precision.md`` and ``precision.png``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from isnet_trt.bundle import CheckpointInfo
from isnet_trt.export.parity import BlockErrors, ParityResult
from isnet_trt.export.quantise import Mix
from isnet_trt.export.quantise.plot import draw as draw_mix
from isnet_trt.export.tune_state import TuningTable
from isnet_trt.metrics import Metrics, percent, rounded
from isnet_trt.settings import Labels

PAGE, PICTURE, MIX = "precision.md", "precision.png", "mix.png"
_WORST = 8


@dataclass(frozen=True)
class Scores:
    """Metrics of the checkpoint and of the engine on a labelled set, through one runtime."""

    pictures: str
    checkpoint: Metrics
    engine: Metrics
    agreement: float

    @property
    def drop(self) -> float:
        """Points of mIoU that the engine loses."""
        return 100 * (self.checkpoint.miou - self.engine.miou)

    def to_json(self) -> dict[str, Any]:
        """For the manifest: fractions, except the drop, which is in points."""
        return {
            "pictures": self.pictures,
            "checkpoint_miou": self.checkpoint.miou,
            "engine_miou": self.engine.miou,
            "drop_points": self.drop,
            "agreement": self.agreement,
        }


@dataclass(frozen=True)
class Report:
    """What is reported about the precision of one build.

    ``about`` and ``built`` are facts about the graph and the engine, printed as they are.
    """

    recipe: str
    checkpoint: CheckpointInfo
    precision: str
    engine: str
    labels: Labels
    result: ParityResult
    about: dict[str, Any] = field(default_factory=dict)
    built: dict[str, Any] = field(default_factory=dict)
    scores: Scores | None = None
    mix: Mix | None = None
    tuning: TuningTable | None = None

    def to_json(self) -> dict[str, Any]:
        """The manifest's ``parity``."""
        more = {"graph": self.about, "built": self.built, "scores": self.scores and self.scores.to_json()}
        return self.result.to_json() | {name: value for name, value in more.items() if value}

    def write(self, folder: Path) -> None:
        """Write the page and its figures into ``folder``."""
        (folder / PAGE).write_text("\n".join(_page(self)) + "\n", "utf-8")
        if self.result.blocks:
            _draw(self.result, folder / PICTURE)
        if self.mix:
            draw_mix(self.mix, folder / MIX)
        if self.tuning:
            self.tuning.write(folder)


def _page(report: Report) -> Iterator[str]:
    result = report.result
    yield f"# {report.precision} engine of {report.recipe}"
    yield ""
    yield f"Built for {report.engine}; compared with the given float32 network on {len(result.rows)} network inputs "
    yield f"(compared engine: {result.engine})."
    yield ""
    averaged = ", averaged weights (`--weights ema`)" if report.checkpoint.weights == "ema" else ""
    yield f"- network: {report.checkpoint.name}, SHA-256 `{report.checkpoint.sha256}`{averaged}"
    yield f"- equal labels: **{percent(result.agreement, 3)} %** of all positions of the network's output"
    worst = max(result.rows, key=lambda row: row.rms)
    yield f"- error of the logits: rms {worst.rms:.2e} of their standard deviation at worst ({worst.picture})"
    if report.scores:
        yield from _scores(report.scores)
    for name, value in report.built.items():
        yield f"- {name}: {_short(value)}"
    if result.blocks:
        yield from _blocks(result.blocks.values())
    yield from _classes(report)
    yield from _graph_facts(report.about)
    if report.mix:
        yield from ("", "## What stays out of eight bits", "", report.mix.markdown(), "", f"![The search]({MIX})")
    if report.tuning:
        yield from report.tuning.markdown()
    yield from _rows(result)
    if result.blocks:
        yield from ("", f"![Values at the block borders]({PICTURE})")


def _scores(scores: Scores) -> Iterator[str]:
    yield (
        f"- mIoU on {scores.pictures}: checkpoint {percent(scores.checkpoint.miou)} %, engine "
        f"{percent(scores.engine.miou)} %: **{scores.drop:+.2f} points lost**; "
        f"{percent(scores.agreement, 3)} % of the pixels labelled alike"
    )


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_short(item)}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _blocks(blocks: Iterable[BlockErrors]) -> Iterator[str]:
    yield from ("", "## Tensors at the block borders", "", "Worst picture of each; errors over the standard deviation.")
    yield from ("", "| block | cosine | rms error | largest error |", "|---|---:|---:|---:|")
    for block in blocks:
        yield f"| {block.block} | {rounded(block.cosine, 6)} | {block.rms:.2e} | {block.max:.2e} |"


def _classes(report: Report) -> Iterator[str]:
    """The classes on which engine and given network agree least, and the most frequent changes of class."""
    confusion = report.result.confusion
    iou = confusion.metrics().iou
    order = [int(k) for k in np.argsort(np.nan_to_num(iou, nan=2.0), kind="stable") if not np.isnan(iou[k])]
    yield from ("", "## Classes that differ most", "", "IoU of the engine's labels with the network's.", "")
    yield from ("| class | IoU with the network |", "|---|---:|")
    for k in order[:_WORST]:
        yield f"| {report.labels.names[k]} | {percent(iou[k])} % |"
    names = report.labels.names
    if mistakes := confusion.mistakes(3):
        pairs = (f"{names[m.truth]} → {names[m.predicted]} ({percent(m.share)} %)" for m in mistakes)
        yield from ("", f"Most frequent changes: {', '.join(pairs)}.")


def _graph_facts(about: dict[str, Any]) -> Iterator[str]:
    if not about:
        return
    yield from ("", "## The graph", "")
    yield from (f"- {name}: {_short(value) or 'none'}" for name, value in about.items() if name != "islands")
    if "islands" in about:  # the nodes of the fp32 fallback
        yield f"- nodes that stay float32: {len(about['islands'])}"
        yield from (f"  - {node}: {reason}" for node, reason in about["islands"].items())


def _rows(result: ParityResult) -> Iterator[str]:
    yield from ("", "## Pictures", "", "| input | size | largest | rms | equal labels |", "|---|---|---:|---:|---:|")
    for row in result.rows:
        size = f"{row.height}×{row.width}"
        yield f"| {row.picture} | {size} | {row.max:.2e} | {row.rms:.2e} | {percent(row.agreement, 3)} % |"
    bounds = result.tolerance
    yield (f"| bound | | {bounds.max:.2e} | {bounds.rms:.2e} | {percent(bounds.agreement, 1)} % |")


def _draw(result: ParityResult, path: Path) -> None:
    """Plot the values of each block's output as two histograms, and the error of each block as a bar."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(result.histograms)
    columns = 3
    rows = -(-(len(names) + 1) // columns)
    # Without pyplot, which would keep the figure and may look for a display.
    figure = Figure(figsize=(4 * columns, 2.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for name, axis in zip(names, axes, strict=False):
        edges, reference, values = result.histograms[name]
        axis.stairs(reference, edges, fill=True, color="0.8", label="checkpoint")
        axis.stairs(values, edges, color="tab:red", label="engine's graph")
        axis.set_yscale("symlog")
        axis.set_title(f"{name}: cosine {rounded(result.blocks[name].cosine, 5)}", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0].legend(fontsize=7)
    bars = axes[len(names)]
    bars.barh(names[::-1], [result.blocks[name].rms for name in names[::-1]], color="tab:red")
    bars.set_title("rms error over standard deviation", fontsize=8)
    bars.tick_params(labelsize=7)
    for axis in axes[len(names) + 1 :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=90)
