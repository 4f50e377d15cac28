"""Sections of a build's report that need nothing but figures: bounds, the statement on other images, graph facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from isnet_trt.export.parity import ParityResult
from isnet_trt.export.samples import EVERY, FEWEST, Evidence
from isnet_trt.markdown import plain, table
from isnet_trt.metrics import ENOUGH, FEW, percent, rounded, tolerance_statement


def statement(evidence: Evidence | None, images: Mapping[str, float]) -> str:
    """What the worst of the compared ``images`` (name -> share of equal labels) says of images not compared."""
    if evidence is None:
        return "Where the compared images come from is not noted, so nothing follows for other images."
    if evidence.origin == "built-in":
        return (
            "The built-in photographs show that the engine computes what the reference computes. They are no sample "
            "of the images that it will see, so no figure for those follows: name some with `--images`."
        )
    if not evidence.independent:
        return (
            "The figure is probably better than on other images, since some of these were used for calibration. Give "
            f"`--images` that are not in the `--calib` folder, or {FEWEST} or more images in it: one of {EVERY} is "
            "then held out."
        )
    worst, count = min(images.values()), len(images)
    if count < FEW:
        return f"{count} images are too few for a bound on others: {ENOUGH} are needed to speak of 95 % of them."
    neighbours = " Frames of one video are no random sample." if evidence.origin == "held out" else ""
    return tolerance_statement(count, worst, "equal labels") + neighbours


_WHY_FP32 = (
    "two float32 implementations differ by about 1e-5, the mildest structural mistake (a wrong epsilon) by 1e-2 rms"
)
_WHY_OTHERS = (
    "wide enough for networks with synthetic weights, whose labels hang on small differences; logits unrelated to the "
    "reference's have an rms error of 1.4"
)


def bounds(result: ParityResult, precision: str) -> Iterator[str]:
    """The bounds beyond which a build is refused, with what was measured."""
    limits, rows = result.tolerance, result.rows
    yield "## Bounds of a broken engine"
    yield (
        "A build beyond one of these is refused. They tell a broken engine from a rounded one and say nothing of its "
        f"fitness: {_WHY_FP32 if precision == 'fp32' else _WHY_OTHERS}."
    )
    least, cosine = min(row.agreement for row in rows), min((b.cosine for b in result.blocks.values()), default=1.0)
    lines = [
        ("rms error of the logits", f"{max(row.rms for row in rows):.2e}", f"≤ {limits.rms:g}"),
        ("largest error of a logit", f"{max(row.max for row in rows):.2e}", f"≤ {limits.max:g}"),
        ("equal labels of an input", f"{percent(least, 3)} %", f"≥ {percent(limits.agreement, 1)} %"),
        ("cosine of a block's output", rounded(cosine, 6), f"≥ {limits.cosine:g}"),
    ]
    yield table(("errors over the logits' standard deviation", "worst input", "refused unless"), lines)


def graph_facts(about: Mapping[str, Any], built: Mapping[str, Any]) -> Iterator[str]:
    """What was done to the graph, and what the builder tells of the engine."""
    lines = [f"- {name}: {plain(short(value) or 'none')}" for name, value in about.items() if name != "islands"]
    if "islands" in about:  # the nodes of the fp32 fallback
        lines.append(f"- nodes that stay float32: {len(about['islands'])}")
        lines += [f"  - {plain(node)}: {plain(reason)}" for node, reason in about["islands"].items()]
    lines += [f"- engine, {name}: {plain(short(value))}" for name, value in built.items()]
    if lines:
        yield from ("## The graph and the engine", "\n".join(lines))


def short(value: Any) -> str:
    """A fact as one line."""
    if isinstance(value, dict):
        return "; ".join(f"{key}: {short(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
