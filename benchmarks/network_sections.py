"""Tables of `benchmarks.networks` and `benchmarks.pipelines`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.results import Record
from isnet_trt.metrics import percent

_PRESETS = {"default": "whole %", "ms-flip": "3 scales, flip %", "windows": "windows, flip, probabilities %"}
_COLOURS = re.compile(r"\\x1b\[[\d;]*m")
"""Escape sequences of a terminal, as results of earlier versions hold them."""

NETWORKS_NOTE = (
    "Labels of the fp32 bundle equal to those of the network's own run merged in float64; in parentheses pixels that "
    "differ though the two best scores are no tie (closer than 0.1 % of the scores' standard deviation). uint8: labels "
    "equal to those of fp32, in windows. RTX fp16 is built ahead of time, its layers are checked for their types, and "
    "it is not run: there is no GPU here."
)
PIPELINES_NOTE = "Milliseconds from the decoded picture to the label map: median (quartiles) of the rounds."
MEMORY_NOTE = (
    "MiB: the largest resident set while a picture is labelled, less what the process held when it was loaded."
)


def network_row(record: Record) -> Mapping[str, object]:
    """What was built of a network, and how many labels equal those of its own run."""
    builds = record["builds"]
    fp32 = builds.get("CPU fp32", {})
    row = {"network": record["case"], "given as": f"`{record['source']}`" if "source" in record else ""}
    row["stride"] = str(fp32.get("stride", "–"))
    for preset, title in _PRESETS.items():
        row[title] = _labels(record["labels"].get(preset))
    row["uint8 %"] = _built(builds.get("CPU uint8"))
    row["RTX fp16"] = _built(builds.get("RTX fp16"))
    return row


def _labels(labels: Record | None) -> str:
    return f"{percent(labels['equal'], 3)} ({labels['wrong']})" if labels else "–"


def _built(build: Record | None) -> str:
    if build is None:
        return "–"
    if build["status"] != "built":
        return build["status"]
    return percent(build["labels_equal"], 1) if "labels_equal" in build else "built"


def refusals(record: Record) -> Iterator[str]:
    """Each message of a refused build once, with the builds that it ended."""
    messages: dict[str, list[str]] = {}
    for title, build in record["builds"].items():
        if build["status"] != "built":
            messages.setdefault(_COLOURS.sub("", f"{build['error']}: {build['why']}"), []).append(title)
    for message, titles in messages.items():
        yield f"**{record['case']}**, {', '.join(titles)}: {message}"


def pipeline_rows(records: Sequence[Record], memory: bool) -> Iterator[Mapping[str, object]]:
    """Milliseconds, or MiB, of every timed contender: a row for each case."""
    timed = [(record, {c["name"]: c for c in record["contenders"] if c["status"] == "timed"}) for record in records]
    names = dict.fromkeys(name for _, contenders in timed for name in contenders)
    figure = _memory if memory else _time
    for record, contenders in timed:
        yield {"case": record["case"]} | {name: figure(contenders.get(name)) for name in names}


def refused_contenders(records: Sequence[Record]) -> list[str]:
    """Why a contender was not timed in a case, each reason once."""
    return sorted({f"{c['name']}: {c['why']}" for record in records for c in record["contenders"] if c["why"]})


def _time(contender: Record | None) -> str:
    if contender is None:
        return "–"
    low, high = contender["summary"]["quartiles"]
    return f"{1e3 * contender['summary']['p50']:.0f} ({1e3 * low:.0f}–{1e3 * high:.0f})"


def _memory(contender: Record | None) -> str:
    beyond = contender["memory"]["beyond"] if contender else None
    return "–" if beyond is None else f"{beyond / 2**20:.0f}"
