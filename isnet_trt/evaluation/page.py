"""A report as a page (Markdown and HTML), and as text for a terminal."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from isnet_trt.errors import first_few
from isnet_trt.evaluation.examples import figures
from isnet_trt.evaluation.picture import interactive
from isnet_trt.evaluation.provenance import Provenance
from isnet_trt.evaluation.report import MEANS, Report, figure
from isnet_trt.markdown import code, html_page, plain, table
from isnet_trt.metrics import FEW, percent, tolerance_statement

_WIDEST = 32
"""Characters of a cell on a terminal."""
MISTAKES = 10
"""The most frequent confusions that are listed."""
_NOTE = (
    "Figures are per cent, differences percentage points. A class that occurs neither in the truth nor in the "
    "predictions has – and no part in a mean; one that is predicted but never present counts 0 in the mIoU. "
    "Where only one class is present there is no mIoU, which any constant prediction could have perfect."
)


@dataclass(frozen=True)
class Table:
    """Cells as text; the first ``left`` columns are aligned to the left, the others to the right."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    left: int = 1


FOLDER = "evaluation"
"""Of the images beside ``evaluation.md``."""


@dataclass(frozen=True)
class Matrix:
    """A model's confusion matrix: the figure of all classes, and, where they are many, that of the most confused."""

    full: bytes
    grouped: bytes | None

    @property
    def readable(self) -> bytes:
        """The one in which names and figures can be read."""
        return self.grouped or self.full


def documents(report: Report, provenance: Provenance, matrices: Sequence[Matrix]) -> dict[str, bytes]:
    """The files of the report by name: ``evaluation.md`` and its images, and ``evaluation.html``, which holds them.

    ``matrices`` has one of each model, or none. The HTML page is left out where markdown-it-py is missing.
    """
    lines, images = examples(report)
    files: dict[str, bytes | str] = {**images}
    shown: dict[str, bytes | str] = {**images}
    names = ("confusion.png", "confusion_against.png")
    figures = []
    for name, matrix, score in zip(names, matrices, report.tally.scores, strict=False):
        path = f"{FOLDER}/{name}" if matrix.grouped else name
        files |= {name: matrix.full, path: matrix.readable}
        shown[path] = interactive(score.confusion, report.labels.names, matrix.readable)
        figures.append(path)
    text = markdown(report, provenance, lines, figures)
    documents = {name: content if isinstance(content, bytes) else content.encode() for name, content in files.items()}
    documents["evaluation.md"] = text.encode()
    with contextlib.suppress(ImportError):
        documents["evaluation.html"] = html_page(text, f"Evaluation on {report.dataset}", shown).encode()
    return documents


def markdown(report: Report, provenance: Provenance, shown: Sequence[str] = (), figures: Sequence[str] = ()) -> str:
    """The whole page; ``shown`` are the paragraphs of the examples, ``figures`` the files of the confusion matrices."""
    parts = [f"# Evaluation on {plain(report.dataset)}, {report.split}", verdict(report), *_beyond(report)]
    parts += ["## How this was made", table(("fact", "value"), [*_made(report), *provenance.rows()], left=2)]
    parts += [*shown, "## All classes together", _as_markdown(summary(report))]
    parts += ["## Classes", _as_markdown(classes(report))]
    for number in range(len(report.models)):
        suffix = f" of {_letter(number)}" if len(report.models) > 1 else ""
        parts += [f"## Most frequent mistakes{suffix}", _as_markdown(mistakes(report, number))]
        parts += [f"![Confusion matrix{suffix}: rows are the truth]({path})" for path in figures[number : number + 1]]
    parts.append(_NOTE)
    if report.tally.skipped:
        parts += ["## Skipped", "\n".join(f"- {plain(reason)}" for _, reason in report.tally.skipped)]
    return "\n\n".join(parts) + "\n"


def verdict(report: Report) -> str:
    """The mIoU or its difference, and the size of the sample, as a block quote."""
    tally, figures = report.tally, report.metrics
    pixels = int(tally.scores[0].confusion.counts.sum())
    sample = f"{tally.pictures:,} images, {pixels:,} pixels with a truth"
    if len(figures) == 1:
        lines = [
            f"**mIoU {figures[0].describe_miou()}**, pixel accuracy {percent(figures[0].all_accuracy)} %: {sample}."
        ]
    else:
        one, two = figures
        change = difference(two.meaningful_miou - one.meaningful_miou)
        lines = [
            f"**mIoU of A {one.describe_miou()}, of B {two.describe_miou()}: B − A {change} points**: {sample}.",
            *(f"{line}." for line in _agreement(report)),
        ]
    if tally.skipped:
        lines.append(f"**{len(tally.skipped)} images were left out** (listed at the end).")
    if len(figures) == 1 and tally.examples:
        least = tally.examples[0]
        lines.append(f"Least accurate image: {plain(least.name)}, {percent(least.equal)} % of its pixels.")
    return "\n>\n".join(f"> {line}" for line in lines)


def _beyond(report: Report) -> list[str]:
    """The bound that the least accurate image gives for images outside the set."""
    tally = report.tally
    if len(report.models) > 1 or tally.pictures < FEW or not tally.examples:
        return []
    return [tolerance_statement(tally.pictures, tally.examples[0].equal, "of their pixels right")]


def _made(report: Report) -> Iterator[tuple[str, str]]:
    names = plain(f"{report.dataset} {report.split}")
    skipped = f", {len(report.tally.skipped)} skipped" if report.tally.skipped else ""
    yield "images", f"{names}: {report.tally.pictures}{skipped}; {code(report.digest)} is the SHA-256 of their names"
    for number, (model, engine) in enumerate(zip(report.models, report.engines, strict=True)):
        name = f"{_letter(number)}: " if len(report.models) > 1 else ""
        yield f"{name}model", f"{model.kind} {plain(model.path)}, recipe {plain(model.recipe)}"
        if model.digest:
            yield f"{name}bundle.json", f"SHA-256 `{model.digest}`, which covers every file of the bundle"
        weights = ", averaged weights" if model.checkpoint.weights == "ema" else ""
        yield f"{name}checkpoint", f"{plain(model.checkpoint.name)}, SHA-256 `{model.checkpoint.sha256}`{weights}"
        yield f"{name}engine", plain(engine)
        yield f"{name}settings", plain(f"preset {model.preset}: {model.inference.describe()}")
    several = f", {report.processes} processes" if report.processes > 1 else ""
    yield "time", f"{report.tally.wall:.1f} s, {report.rate:.2f} images/s with reading and counting{several}"
    for line in _occurring(report):
        yield "classes", plain(line)


def examples(report: Report) -> tuple[list[str], dict[str, bytes | str]]:
    """Paragraphs that show the worst images, and the files they need."""
    if not report.tally.examples:
        return [], {}
    two = len(report.models) > 1
    captions = {"input": "input", "expected": "A" if two else "truth (striped: not labelled)"}
    captions |= {"actual": "B" if two else "prediction", "both": "A and B" if two else "truth and prediction"}
    captions["difference"] = "magenta: A and B differ" if two else "magenta: wrong"
    lines, files = figures(report.tally.examples, report.labels, captions, FOLDER)
    equal = report.tally.examples[0].equal == 1
    title = "Images" if equal else "Images on which A and B differ most" if two else "Least accurate images"
    return [f"## {title}", *lines], files


def text(report: Report) -> str:
    """Facts, classes and summary for a terminal."""
    return "\n\n".join(["\n".join(facts(report)), _as_text(classes(report)), _as_text(summary(report))])


def facts(report: Report) -> list[str]:
    """A line each: the pictures, models and engines, the time taken, and the agreement of two models."""
    tally = report.tally
    lines = [f"{report.dataset} {report.split}: {tally.pictures} pictures, {len(tally.skipped)} skipped"]
    for number, (model, engine) in enumerate(zip(report.models, report.engines, strict=True)):
        name = f"{_letter(number)}: " if len(report.models) > 1 else ""
        lines.append(f"{name}{model.kind} {model.path} ({model.recipe}), {engine}")
        lines.append(f"{name}preset {model.preset}: {model.inference.describe()}")
    several = f", {report.processes} processes" if report.processes > 1 else ""
    lines += _occurring(report)
    lines.append(f"{tally.wall:.1f} s, {report.rate:.2f} images/s with reading and counting{several}")
    return lines + _agreement(report)


def _occurring(report: Report) -> list[str]:
    """How many classes the labels have, unless they have all; pictures without any labels have none."""
    pixels, names = report.tally.scores[0].confusion.counts.sum(1), report.labels.names
    absent = [name for name, count in zip(names, pixels, strict=True) if not count]
    if not absent or len(absent) == len(names):
        return []
    note = "; one class gives no mIoU" if len(names) - len(absent) == 1 else ""
    return [f"{len(names) - len(absent)} of {len(names)} classes occur in the labels, not {first_few(absent)}{note}"]


def _agreement(report: Report) -> list[str]:
    agreement = report.tally.agreement
    if agreement is None:
        return []
    share, name = agreement.least or (math.nan, "none")
    weights = "one checkpoint" if report.same_weights else "different checkpoints"
    return [
        f"A and B, made from {weights}, label {_equal(agreement.all_pixels)} % of the pixels alike, "
        f"{_equal(agreement.labelled_pixels)} % of those with a truth; least in {name}: {_equal(share)} %",
    ]


def _equal(share: float) -> str:
    """A share of equal pixels in per cent with four decimals, without any only where all are equal."""
    return "100" if share == 1 else percent(share, 4)


def summary(report: Report) -> Table:
    """The figures over all classes, and images/s of each model alone."""
    rows = [(title, *_columns([figure(m, key) for m in report.metrics])) for key, title in MEANS.items()]
    rates = [f"{report.model_rate(score):.2f}" for score in report.tally.scores]
    blank = ("",) if len(rates) > 1 else ()
    return Table(("", *_names(report, "value")), [*rows, ("model alone, images/s", *rates, *blank)])


def classes(report: Report) -> Table:
    """One row per class: IoU and accuracy of each model, and how many pixels have it in the truth."""
    figures = report.metrics
    pixels = report.tally.scores[0].confusion.counts.sum(1)
    rows = [
        (
            name,
            *_columns([m.iou[number] for m in figures]),
            *(percent(m.accuracy[number]) for m in figures),
            *((percent(figures[0].dice[number]),) if len(figures) == 1 else ()),
            f"{pixels[number]:,}",
        )
        for number, name in enumerate(report.labels.names)
    ]
    if len(figures) == 1:
        return Table(("class", "IoU", "accuracy", "dice", "pixels"), rows)
    return Table(("class", "IoU A", "IoU B", "B − A", "accuracy A", "accuracy B", "pixels"), rows)


def mistakes(report: Report, number: int) -> Table:
    """The pairs of classes that model ``number`` confuses on most pixels."""
    names = report.labels.names
    rows = [
        (names[m.truth], names[m.predicted], percent(m.share), f"{m.pixels:,}")
        for m in report.tally.scores[number].confusion.mistakes(MISTAKES)
    ]
    return Table(("truth", "predicted", "share of the truth", "pixels"), rows, left=2)


def _names(report: Report, single: str) -> tuple[str, ...]:
    return (single,) if len(report.models) == 1 else ("A", "B", "B − A")


def _letter(number: int) -> Literal["A", "B"]:
    return "B" if number else "A"


def _columns(values: list[float]) -> tuple[str, ...]:
    """The values in per cent and, of two, their difference."""
    cells = tuple(percent(value) for value in values)
    return cells if len(values) == 1 else (*cells, difference(values[1] - values[0]))


def difference(value: float) -> str:
    """A difference of fractions in percentage points with sign and four decimals, 0 only where it is exactly that."""
    return "–" if math.isnan(value) else f"{100 * value:+.4f}" if value else "0"


def _as_markdown(content: Table) -> str:
    rows = [[*map(plain, row[: content.left]), *row[content.left :]] for row in content.rows]
    return table(content.head, rows, content.left)


def _as_text(table: Table) -> str:
    lines = [tuple(_cut(cell) for cell in line) for line in (table.head, *table.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < table.left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cut(cell: str) -> str:
    return cell if len(cell) <= _WIDEST else cell[: _WIDEST - 1] + "…"
