"""The accuracy report of a build: ``precision.md`` with its figures, and ``precision.html``, which holds everything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from isnet_trt.bundle import REPORT, CheckpointInfo, content_digest, sha256
from isnet_trt.errors import first_few
from isnet_trt.evaluation.examples import figures
from isnet_trt.evaluation.provenance import Provenance
from isnet_trt.export.parity import TARGETS, ParityResult, Target
from isnet_trt.export.quantise import Mix
from isnet_trt.export.quantise.plot import draw as draw_mix
from isnet_trt.export.report_blocks import draw_blocks
from isnet_trt.export.report_sections import bounds, graph_facts, statement
from isnet_trt.export.samples import Evidence
from isnet_trt.export.tune_state import TuningTable
from isnet_trt.markdown import html_page, plain, table
from isnet_trt.metrics import Metrics, percent, rounded
from isnet_trt.settings import Labels

PAGE, HTML, PICTURE, MIX = f"{REPORT}.md", f"{REPORT}.html", f"{REPORT}.png", "mix.png"
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

    Attributes:
        checkpoint: the file that is the reference.
        engine: library and version of the bundle's engine.
        result: the comparison of the gate.
        about, built: facts about the graph and the engine, printed as they are.
        evidence: where the compared images come from; None: not known.
        target: the share of equal labels to reach; None: that of the precision.
        not_run: why the bundle's engine itself was not compared; empty: it was.
        calibration: which images the ranges were measured on.
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
    evidence: Evidence | None = None
    target: Target | None = None
    not_run: str = ""
    calibration: str = ""
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def bound(self) -> Target:
        """The share of equal labels that the engine is held to."""
        return self.target or TARGETS[self.precision]

    @property
    def meets(self) -> bool:
        """Whether enough labels are equal."""
        return self.result.agreement >= self.bound.agreement

    @property
    def judged(self) -> str:
        """What was compared with the reference."""
        return "ONNX graph" if self.not_run else "engine"

    def to_json(self) -> dict[str, Any]:
        """The manifest's ``parity``."""
        more = {
            "target": {"agreement": self.bound.agreement, "met": self.meets},
            "evidence": self.evidence and self.evidence.to_json(),
            "command": self.provenance.command,
            "created_at": self.provenance.created_at,
            "graph": self.about,
            "built": self.built,
            "scores": self.scores and self.scores.to_json(),
        }
        return self.result.to_json() | {name: value for name, value in more.items() if value}

    def write(self, folder: Path) -> None:
        """Write the page, the files that it shows, and the page as HTML into ``folder``, which has all other files."""
        if self.mix:
            draw_mix(self.mix, folder / MIX)
        if self.tuning:
            self.tuning.write(folder)
        digests = {path.relative_to(folder).as_posix(): sha256(path) for path in folder.rglob("*") if path.is_file()}
        captions = {"input": "input", "expected": "reference, float32", "actual": f"{self.judged}, {self.precision}"}
        captions |= {"both": f"reference and {self.judged}", "difference": "magenta: another class"}
        shown, files = figures(self.result.examples, self.labels, captions, REPORT)
        blocks = draw_blocks(self.result) if self.result.blocks else None
        if blocks:
            files[PICTURE] = blocks.sheet
        text = "\n\n".join(_page(self, digests, shown)) + "\n"
        for name, content in files.items():
            place = folder / name
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(content if isinstance(content, bytes) else content.encode())
        (folder / PAGE).write_text(text, "utf-8")
        if blocks:
            files[PICTURE] = blocks.panels
        title = f"{self.precision} engine of {self.recipe}"
        if self.mix:
            files[MIX] = (folder / MIX).read_bytes()
        (folder / HTML).write_text(
            html_page(text, title, files, None if self.not_run and self.meets else self.meets), "utf-8"
        )


def _page(report: Report, digests: dict[str, str], shown: list[str]) -> Iterator[str]:
    """The paragraphs of the page; ``shown`` are those of the examples."""
    yield f"# {report.precision} engine of {plain(report.recipe)}"
    yield from _verdict(report)
    yield "## How this was made"
    yield table(("fact", "value"), [*_provenance(report, digests)], left=2)
    yield from _images(report, shown)
    yield from _classes(report)
    yield from bounds(report.result, report.precision)
    yield from _blocks(report.result)
    yield from graph_facts(report.about, report.built)
    if report.mix:
        yield from ("## What stays out of eight bits", report.mix.markdown(), f"![The search]({MIX})")
    if report.tuning:
        yield "\n".join(report.tuning.markdown()).strip()
    yield from _inputs(report)


def _verdict(report: Report) -> Iterator[str]:
    result, bound = report.result, report.bound
    verb = ("✔ Meets" if report.meets else "✘ Does not meet") + " its bound"
    if report.not_run:
        verb = f"Engine not run; its ONNX graph {'meets' if report.meets else 'does not meet'} the bound"
    images, inputs = len(result.images), len(result.rows)
    lines = [
        f"**{verb}: {percent(result.agreement, 3)} % of the labels equal the reference's; at least "
        f"{percent(bound.agreement)} % are expected.** The reference is {plain(report.checkpoint.name)} in float32. "
        f"Compared: {result.positions:,} labels (arg max of the network's output, before it is resized) of {inputs} "
        f"input{'s' * (inputs > 1)} from {images} image{'s' * (images > 1)}{_origin(report)}."
    ]
    least, share = next(iter(result.images.items()))
    if share < 1:
        lines.append(f"Least equal image: {plain(least)}, {percent(share, 3)} %.")
    if report.not_run:
        lines.append(
            f"**The bundle's engine ({plain(report.engine)}) was not run**, since this machine cannot: "
            f"{plain(report.not_run.rstrip('.'))}. Compared was the bundle's ONNX graph, run by {plain(result.engine)}."
            " It computes what the engine is built to compute, but does not show what the engine computes."
        )
    else:
        lines.append(f"The bundle's own engine ran: {plain(result.engine)}.")
    if scores := report.scores:
        lines.append(
            f"mIoU on {plain(scores.pictures)}: reference {percent(scores.checkpoint.miou)} %, {report.judged} "
            f"{percent(scores.engine.miou)} %: **{scores.drop:+.2f} points lost**; "
            f"{percent(scores.agreement, 3)} % of the pixels labelled alike."
        )
    yield "\n>\n".join(f"> {line}" for line in lines)
    yield f"Why {percent(bound.agreement)} %: {bound.reason}."
    yield statement(report.evidence, result.images)


_ORIGINS = {
    "built-in": ", which are built in and none of yours",
    "given": " that you gave",
    "held out": " that were held out of calibration",
    "calibration": " **that the engine was also calibrated on**",
}


def _origin(report: Report) -> str:
    if report.evidence is None:
        return ""
    shared = sum(image.calibrated for image in report.evidence.images)
    note = f", **of which {shared} have the content of a calibration image**" if shared else ""
    return _ORIGINS[report.evidence.origin] + (note if report.evidence.origin != "calibration" else "")


def _provenance(report: Report, digests: dict[str, str]) -> Iterator[tuple[str, str]]:
    averaged = ", averaged weights (`--weights ema`)" if report.checkpoint.weights == "ema" else ""
    yield "reference", f"{plain(report.checkpoint.name)}, SHA-256 `{report.checkpoint.sha256}`{averaged}"
    yield "recipe", f"{plain(report.recipe)}, {report.labels.count} classes"
    yield "engine", f"{plain(report.engine)}, {report.precision}"
    for name in ("model.onnx", "model.engine"):
        if name in digests:
            yield name, f"SHA-256 `{digests[name]}`"
    yield (
        "bundle",
        f"contents `{content_digest(digests)}`: the SHA-256 of the list of SHA-256 of all files but this report's. "
        "`isnet-trt bundle show` prints it, and the digest of `bundle.json`, which covers this report too",
    )
    if evidence := report.evidence:
        place = f"{plain(evidence.folder)}: " if evidence.folder else ""
        names = (f"{plain(image.name)} `{image.sha256[:12]}`" for image in evidence.images)
        yield "compared images", f"{place}{len(evidence.images)} of {evidence.available}: {', '.join(names)}"
    if report.calibration:
        yield "calibration", report.calibration
    yield from report.provenance.rows()


def _images(report: Report, shown: list[str]) -> Iterator[str]:
    if not report.result.examples:
        return
    equal = report.result.agreement == 1
    yield "## Compared images" if equal else "## Images with the fewest equal labels"
    note = "No label differs; some of the images" if equal else "The worst come first"
    yield f"{note}. Labels are those of the network's output, enlarged to the image."
    yield from shown


def _classes(report: Report) -> Iterator[str]:
    """The classes on which engine and reference agree least, and the most frequent changes of class."""
    confusion, names = report.result.confusion, report.labels.names
    iou, pixels = confusion.metrics().iou, confusion.counts.sum(1)
    order = [int(k) for k in np.argsort(np.nan_to_num(iou, nan=2.0), kind="stable") if iou[k] < 1]
    absent = [names[k] for k in range(len(names)) if np.isnan(iou[k])]
    yield "## Classes"
    if absent:
        yield f"{len(names) - len(absent)} of {len(names)} classes occur. Not: {plain(first_few(absent))}."
    if not order:
        yield "Every class that occurs has the same positions on both sides."
        return
    yield (
        f"{len(order)} classes differ. IoU of the {report.judged}'s labels with the reference's, of the "
        f"{min(len(order), _WORST)} that differ most, and the most frequent changes:"
    )
    rows = [(plain(names[k]), f"{percent(iou[k])} %", f"{pixels[k]:,}") for k in order[:_WORST]]
    yield table(("class", "IoU with the reference", "labels of the reference"), rows)
    changes = [
        (plain(names[m.truth]), plain(names[m.predicted]), f"{m.pixels:,}", f"{percent(m.share)} %")
        for m in confusion.mistakes(_WORST)
    ]
    yield table(("reference", report.judged, "labels", "of the class"), changes, left=2)


def _blocks(result: ParityResult) -> Iterator[str]:
    if not result.blocks:
        return
    yield "## Tensors at the block borders"
    yield (
        "The worst input of each, under ONNX Runtime; errors over the standard deviation of the reference's values. "
        "In the figures grey is the reference, red the engine's graph."
    )
    rows = [(b.block, rounded(b.cosine, 6), f"{b.rms:.2e}", f"{b.max:.2e}") for b in result.blocks.values()]
    yield table(("block", "cosine", "rms error", "largest error"), rows)
    yield f"![Values at the block borders]({PICTURE})"


def _inputs(report: Report) -> Iterator[str]:
    yield "## Every input"
    rows = [
        (
            plain(row.picture),
            f"{row.height}×{row.width}",
            f"{percent(row.agreement, 3)} %",
            f"{row.rms:.2e}",
            f"{row.max:.2e}",
        )
        for row in report.result.rows
    ]
    yield table(("input", "size", "equal labels", "rms error", "largest error"), rows)
