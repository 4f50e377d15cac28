"""The report's pictures, as SVG text."""

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

from benchmarks.results import Record

_OURS, _THEIRS, _GREY = "#1f6fb2", "#b0b7bd", "#555555"
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

        yield figure.add_subplot(), svg


def bars(record: Record) -> str:
    """Seconds of each contender of a latency record, with the interval of the median."""
    timed = [c for c in record["contenders"] if c["status"] == "timed"][::-1]
    with _drawing(8, 0.6 + 0.42 * len(timed)) as (axes, svg):
        p50 = [c["summary"]["p50"] for c in timed]
        low = [c["summary"]["p50"] - c["summary"]["low"] for c in timed]
        high = [c["summary"]["high"] - c["summary"]["p50"] for c in timed]
        colours = [_OURS if c["kind"] == "bundle" else _THEIRS for c in timed]
        axes.barh([c["name"] for c in timed], p50, xerr=[low, high], color=colours, ecolor=_GREY, capsize=3)
        axes.set_xlabel("seconds per picture (median, interval of the median)")
        axes.spines[["top", "right"]].set_visible(False)
        return svg()


def waterfall(record: Record) -> str:
    """The stages of each timed contender, one after the other."""
    timed = [c for c in record["contenders"] if c["status"] == "timed"][::-1]
    longest = max((list(c["stages"]) for c in timed), key=len)
    names = list(dict.fromkeys([*longest, *(name for c in timed for name in c["stages"])]))
    with _drawing(8, 1.0 + 0.42 * len(timed)) as (axes, svg):
        left = np.zeros(len(timed))
        for name, colour in zip(names, _STAGES * 3, strict=False):
            widths = np.array([c["stages"].get(name, 0.0) for c in timed])
            axes.barh([c["name"] for c in timed], widths, left=left, color=colour, label=name)
            left += widths
        axes.set_xlim(left=0)
        axes.set_xlabel("seconds per picture, by stage")
        axes.legend(ncols=len(names), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        return svg()


def roofline(record: Record) -> str:
    """Each stage of a limit record: operations per second over operations per byte, under the machine's two roofs."""
    rates = record["rates"]
    roof = max(rates["int8" if record["quantised"] else "fp32"].values())
    bandwidth = max(rates["memory"].values())
    with _drawing(8, 5) as (axes, svg):
        shown = [s for s in record["stages"] if s["operations"] and s["bytes"] and s["seconds"] > 1e-5]
        intensity = [s["operations"] / s["bytes"] for s in shown]
        x = np.geomspace(min([0.5, *intensity]) / 2, max([4 * roof / bandwidth, *intensity]) * 2, 100)
        axes.loglog(x, np.minimum(roof, x * bandwidth) / 1e9, color=_GREY)
        for number, (one, where) in enumerate(zip(shown, intensity, strict=True)):
            speed = one["operations"] / one["seconds"] / 1e9
            size = 4 + 8 * math.sqrt(one["seconds"] / _total(shown))
            axes.plot(where, speed, "o", color=_OURS, alpha=0.6, markersize=size, label=f"{number + 1}  {one['name']}")
            # Stages near the roof lie close together: their numbers stand at three heights.
            beside = (0, -12 - 11 * (number % 3))
            axes.annotate(str(number + 1), (where, speed), beside, textcoords="offset points", ha="center")
        axes.set_ylim(bottom=0.5 * min(axes.get_ylim()[0], axes.get_ylim()[1] / 2))
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, handlelength=0, markerscale=0)
        axes.set_xlabel("operations per byte that must move")
        axes.set_ylabel("10⁹ operations per second")
        axes.set_title(f"{record['name']}, {record['case']}: area of a point is its share of the time", fontsize=9)
        return svg()


def _total(stages: Sequence[Record]) -> float:
    return sum(stage["seconds"] for stage in stages)


def accuracy_against_speed(points: Sequence[tuple[str, float, float]], ylabel: str) -> str:
    """(name, seconds, share 0..1) of each contender: further left is faster, higher is better."""
    with _drawing(7, 4) as (axes, svg):
        for name, seconds, share in points:
            axes.plot(seconds, 100 * share, "o", color=_OURS)
            axes.annotate(name, (seconds, 100 * share), xytext=(6, 4), textcoords="offset points")
        axes.set_xscale("log")
        axes.set_xlabel("seconds per picture")
        axes.set_ylabel(ylabel)
        axes.margins(x=0.25, y=0.15)
        axes.grid(visible=True, which="both", alpha=0.3)
        return svg()


def growth(record: Record) -> str:
    """Seconds over what grows, with the fitted power law, both axes logarithmic."""
    x, y = np.array(record["x"], float), np.array(record["seconds"], float)
    with _drawing(6, 3.6) as (axes, svg):
        axes.loglog(x, y, "o", color=_OURS)
        axes.loglog(x, np.exp(record["offset"]) * x ** record["exponent"], color=_GREY)
        axes.set_xticks(x, [f"{value:g}" for value in x], minor=False)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(record["what"])
        axes.set_ylabel("seconds")
        axes.set_title(f"exponent {record['exponent']:.2f}, expected {record['expected']}", fontsize=9)
        return svg()
