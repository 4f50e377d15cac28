"""The report's figures, as SVG text."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.results import Record, Result, of_kind
from benchmarks.sections import timed

_BLUE, _GREY = "#1f6fb2", "#555555"
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


def bars(record: Record) -> str:
    """Stages of each timed contender, one after the other, and the interval of the median; empty without contenders."""
    contenders = timed(record)[::-1]  # a bar chart is filled from below
    if not contenders:
        return ""
    labels = [contender["name"] for contender in contenders]
    longest = max((list(contender["stages"]) for contender in contenders), key=len)
    stages = list(dict.fromkeys([*longest, *(stage for contender in contenders for stage in contender["stages"])]))
    with _drawing(8, 1.0 + 0.42 * len(contenders)) as (axes, svg):
        left = np.zeros(len(contenders))
        for stage, colour in zip(stages, _STAGES * 3, strict=False):
            widths = np.array([contender["stages"].get(stage, 0.0) for contender in contenders])
            axes.barh(labels, widths, left=left, color=colour, label=stage)
            left += widths
        p50, low, high = (np.array([c["summary"][key] for c in contenders]) for key in ("p50", "low", "high"))
        axes.errorbar(p50, labels, xerr=[p50 - low, high - p50], fmt="none", ecolor=_GREY, capsize=3)
        axes.set(xlim=(0, None), xlabel="seconds per picture by stage, and the interval of the median")
        axes.legend(ncols=len(stages), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
        return svg()


def roofline(record: Record) -> str:
    """Each stage of a limit record: operations per second over operations per byte, under the machine's two roofs."""
    rates = record["rates"]
    roof = max(rates["int8" if record["quantised"] else "fp32"].values())
    bandwidth = max(rates["memory"].values())
    stages = [s for s in record["stages"] if s["operations"] and s["bytes"] and s["seconds"] > 1e-5]
    total = sum(stage["seconds"] for stage in stages)
    intensity = [stage["operations"] / stage["bytes"] for stage in stages]
    with _drawing(8, 5) as (axes, svg):
        x = np.geomspace(min([0.5, *intensity]) / 2, max([4 * roof / bandwidth, *intensity]) * 2, 100)
        axes.loglog(x, np.minimum(roof, x * bandwidth) / 1e9, color=_GREY)
        for number, (stage, at) in enumerate(zip(stages, intensity, strict=True), 1):
            speed = stage["operations"] / stage["seconds"] / 1e9
            size = 4 + 8 * math.sqrt(stage["seconds"] / total)
            axes.plot(at, speed, "o", color=_BLUE, alpha=0.6, markersize=size, label=f"{number}  {stage['name']}")
            # Stages near the roof lie close together: their numbers stand at three heights.
            offset = (0, -12 - 11 * ((number - 1) % 3))
            axes.annotate(str(number), (at, speed), offset, textcoords="offset points", ha="center")
        axes.set_ylim(bottom=0.5 * min(axes.get_ylim()[0], axes.get_ylim()[1] / 2))
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, handlelength=0, markerscale=0)
        axes.set(xlabel="operations per byte that must move", ylabel="10⁹ operations per second")
        axes.set_title(f"{record['name']}, {record['case']}: area of a point is its share of the time", fontsize=9)
        return svg()


def growth(record: Record) -> str:
    """Seconds over what grows, with the fitted power law, both axes logarithmic."""
    x, y = np.array(record["x"], float), np.array(record["seconds"], float)
    with _drawing(6, 3.6) as (axes, svg):
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
        with _drawing(7, 4) as (axes, svg):
            for name, x, y in points:
                axes.plot(x, y, "o", color=_BLUE)
                axes.annotate(name, (x, y), xytext=(6, 4), textcoords="offset points")
            axes.set(xscale="log", xlabel="seconds per picture")
            axes.set_ylabel("mIoU %" if record["labelled"] else "labels equal %")
            axes.margins(x=0.25, y=0.15)
            axes.grid(visible=True, which="both", alpha=0.3)
            yield record, svg()


FIGURES: dict[str, tuple[str, str, Callable[[Record], str]]] = {
    "latency": ("bars", "seconds per picture", bars),
    "limit": ("roofline", "roofline", roofline),
    "growth": ("growth", "growth", growth),
}
"""Kind of record -> name of its figure, caption and function."""
