"""The report's figures, as SVG text."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import Bbox, BboxBase

from benchmarks.results import Record, Result, of_kind
from benchmarks.sections import timed

_BLUE, _GREY = "#1f6fb2", "#555555"
_WIDTH = 5.2
"""Inches of every figure: on a telephone its text is still read."""
_STAGES = ("#4c9f70", "#8fc7a4", "#f0c05a", "#1f6fb2", "#d9794f", "#999999", "#7a5fa8")


@contextmanager
def _drawing(width: float, height: float) -> Iterator[tuple[Axes, Callable[[], str]]]:
    """Axes and a function that gives the SVG; ids do not change from run to run."""
    with mpl.rc_context({"svg.hashsalt": "isnet_trt", "font.size": 9, "svg.fonttype": "none"}):
        figure = Figure(figsize=(width, height), layout="constrained")

        def svg() -> str:
            stream = io.StringIO()
            figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
            text = stream.getvalue()
            return text[text.index("<svg") :]

        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        yield axes, svg


def _label(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    curve: Sequence[tuple[float, float]] = (),
) -> None:
    """Write a text beside each point where it meets no other text, no point and no part of ``curve``.

    A thin line leads to those farther off. The limits of the axes have to be final.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    scale, spots = figure.dpi / 72, axes.transData.transform(points)
    taken = [Bbox.from_bounds(x - 5 * scale, y - 5 * scale, 10 * scale, 10 * scale) for x, y in spots]
    if len(curve):
        taken += [
            Bbox.from_bounds(x - scale, y - scale, 2 * scale, 2 * scale) for x, y in axes.transData.transform(curve)
        ]
    for point, (x, y), text in zip(points, spots, texts, strict=True):
        width, height = scale * (5.2 * len(text) + 2), scale * 11
        choices = [
            Bbox.from_bounds(
                x + scale * far * dx + width * (dx - 1) / 2, y + scale * far * dy - height / 2, width, height
            )
            for far in (8, 14, 22, 32, 44, 58, 74)
            for dx, dy in ((1, 0), (1, 1), (1, -1), (-1, 0), (0, 1), (0, -1), (-1, 1), (-1, -1))
        ]
        box = min(choices, key=lambda box: (box.count_overlaps(taken), not _inside(axes.bbox, box)))
        taken.append(box)
        offset = ((box.x0 + box.x1) / 2 - x) / scale, ((box.y0 + box.y1) / 2 - y) / scale
        is_far = max(abs(offset[0]) - width / scale / 2, abs(offset[1])) > 12
        line = {"arrowstyle": "-", "color": _GREY, "linewidth": 0.5} if is_far else None
        axes.annotate(
            text, point, offset, textcoords="offset points", ha="center", va="center", fontsize=8, arrowprops=line
        )


def _inside(outer: BboxBase, inner: BboxBase) -> bool:
    return bool(outer.x0 <= inner.x0 and inner.x1 <= outer.x1 and outer.y0 <= inner.y0 and inner.y1 <= outer.y1)


def bars(record: Record) -> str:
    """Stages of each timed contender, one after the other, and the interval of the median; empty without contenders."""
    contenders = timed(record)[::-1]  # a bar chart is filled from below
    if not contenders:
        return ""
    labels = [contender["name"] for contender in contenders]
    longest = max((list(contender["stages"]) for contender in contenders), key=len)
    stages = list(dict.fromkeys([*longest, *(stage for contender in contenders for stage in contender["stages"])]))
    with _drawing(_WIDTH, 1.2 + 0.36 * len(contenders)) as (axes, svg):
        left = np.zeros(len(contenders))
        for stage, colour in zip(stages, _STAGES * 3, strict=False):
            widths = np.array([contender["stages"].get(stage, 0.0) for contender in contenders])
            axes.barh(labels, widths, left=left, color=colour, label=stage)
            left += widths
        p50, low, high = (np.array([c["summary"][key] for c in contenders]) for key in ("p50", "low", "high"))
        axes.errorbar(p50, labels, xerr=[p50 - low, high - p50], fmt="none", ecolor=_GREY, capsize=3)
        axes.set(xlim=(0, None), xlabel="seconds per picture, and the interval of the median")
        columns = {"ncols": math.ceil(len(stages) / 2), "columnspacing": 1.0, "handlelength": 1.2}
        axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), frameon=False, **columns)
        return svg()


def roofline(record: Record) -> str:
    """Each stage of a limit record: operations per second over operations per byte, under the machine's two roofs."""
    rates = record["rates"]
    roof = max(rates["int8" if record["quantised"] else "fp32"].values())
    bandwidth = max(rates["memory"].values())
    stages = [s for s in record["stages"] if s["operations"] and s["bytes"] and s["seconds"] > 1e-5]
    total = sum(stage["seconds"] for stage in stages)
    intensity = [stage["operations"] / stage["bytes"] for stage in stages]
    speed = [stage["operations"] / stage["seconds"] / 1e9 for stage in stages]
    with _drawing(_WIDTH, 5.2) as (axes, svg):
        x = np.geomspace(min([0.5, *intensity]) / 2, max([4 * roof / bandwidth, *intensity]) * 2, 100)
        axes.loglog(x, np.minimum(roof, x * bandwidth) / 1e9, color=_GREY)
        points = list(zip(intensity, speed, strict=True))
        for number, (stage, point) in enumerate(zip(stages, points, strict=True), 1):
            size = 4 + 8 * math.sqrt(stage["seconds"] / total)
            axes.plot(*point, "o", color=_BLUE, alpha=0.6, markersize=size, label=f"{number}  {stage['name']}")
        low, high = axes.get_ylim()
        axes.set_ylim(0.5 * min(low, high / 2), 2 * high)
        legend = {"ncols": 2, "frameon": False, "handlelength": 0, "markerscale": 0, "fontsize": 8}
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), **legend)
        axes.set(xlabel="operations per byte that must move", ylabel="10⁹ operations per second")
        axes.set_title("area of a point: its share of the time; line: the limit", fontsize=8)
        roofs = list(zip(x, np.minimum(roof, x * bandwidth) / 1e9, strict=True))
        _label(axes, points, [str(number) for number in range(1, len(points) + 1)], roofs)
        return svg()


def growth(record: Record) -> str:
    """Seconds over what grows, with the fitted power law, both axes logarithmic."""
    x, y = np.array(record["x"], float), np.array(record["seconds"], float)
    with _drawing(_WIDTH, 3.4) as (axes, svg):
        axes.loglog(x, y, "o", color=_BLUE)
        axes.loglog(x, np.exp(record["offset"]) * x ** record["exponent"], color=_GREY)
        axes.set_xticks(x, [f"{value:g}" for value in x], minor=False)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set(xlabel=record["what"], ylabel="seconds")
        axes.set_title(f"exponent {record['exponent']:.2f}, expected {record['expected']}", fontsize=9)
        return svg()


def accuracy_against_speed(data: Result) -> Iterator[tuple[Record, str]]:
    """A figure for each accuracy record whose bundles were timed with the same preset in the same result.

    Further left is faster, higher is better.
    """
    for record in of_kind(data, "accuracy"):
        about = (record["recipe"], record["preset"])
        latencies = [r for r in of_kind(data, "latency") if (r.get("recipe"), r.get("preset")) == about]
        seconds = {c["name"]: c["summary"]["p50"] for latency in latencies for c in timed(latency)[::-1]}
        seconds["checkpoint"] = seconds.get("reference")
        shares = {r["name"]: r["miou"] if record["labelled"] else r["agreement"]["all"] for r in record["rows"]}
        points = [(n, seconds[n], 100 * share) for n, share in shares.items() if share is not None and seconds.get(n)]
        if not points:
            continue
        with _drawing(_WIDTH, 3.8) as (axes, svg):
            at = [(x, y) for _, x, y in points]
            for x, y in at:
                axes.plot(x, y, "o", color=_BLUE)
            axes.set(xscale="log", xlabel="seconds per picture")
            axes.set_ylabel("mIoU %" if record["labelled"] else "labels equal %")
            axes.margins(x=0.3, y=0.2)
            axes.grid(visible=True, which="both", alpha=0.3)
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter("{x:g}")
            _label(axes, at, [name.removeprefix("isnet_trt ") for name, _, _ in points])
            yield record, svg()


FIGURES: dict[str, tuple[str, str, Callable[[Record], str]]] = {
    "latency": ("bars", "seconds per picture", bars),
    "limit": ("roofline", "roofline", roofline),
    "growth": ("growth", "growth", growth),
}
"""Kind of record -> name of its figure, caption and function."""
