"""What a report says of each kind of record: tables and figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks import plots, summary
from benchmarks.accuracy import percent
from benchmarks.gpu_check import section as gpu_check
from benchmarks.pages import Figure, Heading, Part, Table, Text
from benchmarks.results import Record, Result, dates, of_kind
from benchmarks.summary import mib


def parts(name: str, data: Result) -> list[Part]:
    """A whole result, named after its file."""
    found: list[Part] = [Heading(name), *_machine(data), *gpu_check.summary(of_kind(data, "gpu_check"))]
    found += [Heading("In short", 2), *short] if (short := summary.parts(data)) else []
    for kind, (title, section) in _SECTIONS.items():
        records = of_kind(data, kind)
        if records:
            found += [Heading(title, 2)]
            found += section(records, f"{name}-{kind}")
    found += _accuracy_against_speed(name, data)
    if data["gaps"]:
        found += [Heading("Not measured", 2), Table(("what", "why"), [(g["what"], g["why"]) for g in data["gaps"]])]
    return found


def _machine(data: Result) -> list[Part]:
    machine = data["machine"]
    rows = [(key.replace("_", " "), _text(value)) for key, value in machine.items() if key != "command"]
    return [Text(f"Measured {dates(data)}, last by `{machine['command']}`."), Table(("machine", ""), rows)]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items()) or "none"
    return "; ".join(map(_text, value)) if isinstance(value, list) else str(value)


def _latency(record: Record, name: str) -> Iterator[Part]:
    height, width = record["picture"]
    yield Heading(record["case"], 3)
    rounds = f"{record['rounds']} rounds" + (", the checking run is the first" if record["first_counts"] else "")
    compared = f"; labels compared with those of {record['labels_of']}" if record.get("labels_of") else ""
    windows = f"{record['windows']} window{'s' * (record['windows'] > 1)}"
    yield Text(f"{height}×{width}, {record['inference']}, {windows}; {rounds}{compared}.")
    head = ("contender", "p50 s", "p90", "p99", "images/s", "windows/s", "cores busy", "labels equal %")
    timed = [one for one in record["contenders"] if one["status"] == "timed"]
    shown = {
        "beyond weights MiB": True,
        "on the GPU MiB": any(one["memory"]["device"] is not None for one in timed),
        "J": any(one["energy_j"] for one in timed),
    }
    last = [name for name, told in shown.items() if told]
    yield Table((*head, *last), [(*_contender(one), *_means(one, last)) for one in record["contenders"]])
    if record["ratios"]:
        yield Table(
            ("isnet_trt", "over", "times as fast", "interval of the median", "rounds"),
            [(r["of"], r["over"], f"{r['p50']:.2f}", interval(r), str(r["n"])) for r in record["ratios"]],
        )
    for key, figure in record.get("engine_only", {}).items():
        yield Text(f"{key}, network alone on one window of {figure['window']}, answer not checked: {figure['p50']} s.")
    yield from (Text(warning, warning=True) for warning in record["warnings"])
    if any(one["status"] == "timed" for one in record["contenders"]):
        yield Figure(f"{_stem(name)}-bars", plots.bars(record), f"{record['case']}: seconds per picture")
        yield Figure(f"{_stem(name)}-stages", plots.waterfall(record), f"{record['case']}: where the time goes")


def _means(one: Record, shown: Sequence[str]) -> tuple[str, ...]:
    """What a contender took of the columns ``shown``."""
    if one["status"] != "timed":
        return ("",) * len(shown)
    joules = ", ".join(f"{k} {v:.1f}" for k, v in one["energy_j"].items()) or "not available"
    found = {
        "beyond weights MiB": mib(one["memory"]["beyond"]),
        "on the GPU MiB": mib(one["memory"]["device"]),
        "J": joules,
    }
    return tuple(found[name] for name in shown)


def _contender(one: Record) -> tuple[str, ...]:
    if one["status"] != "timed":
        return (one["name"], f"not timed: {one['why']}", *[""] * 6)
    s = one["summary"]
    return (
        f"{one['name']} ({one['description']})",
        *(f"{s[key]:.3f}" for key in ("p50", "p90", "p99")),
        f"{one['images_per_s']:.3g}",
        f"{one['windows_per_s']:.3g}",
        f"{one['cores_busy']:.1f}",
        percent(one["agreement"]["all"]),
    )


def interval(ratio: Record) -> str:
    """The interval of a ratio with its coverage."""
    if ratio["n"] == 1:
        return "one round"
    return f"{ratio['low']:.2f}–{ratio['high']:.2f} ({100 * ratio['coverage']:.0f} %)"


def _postprocess(records: Sequence[Record], name: str) -> Iterator[Part]:
    head = ("scores to labels", "passes", "isnet_trt ms", "reference ms", "times", "interval", "MiB", "labels equal %")
    yield Table(head, [_merged(record) for record in records])
    for record in records:
        yield from (Text(f"{record['case']}: {warning}", warning=True) for warning in record["warnings"])


def _merged(record: Record) -> tuple[str, ...]:
    ours, theirs = (record["summary"][side]["p50"] for side in ("isnet_trt", "reference"))
    memory = record["memory"]
    return (
        record["case"],
        str(record["passes"]),
        f"{1e3 * ours:.1f}",
        f"{1e3 * theirs:.1f}",
        f"{record['ratio']['p50']:.1f}",
        interval(record["ratio"]),
        f"{mib(memory['isnet_trt'])} / {mib(memory['reference'])}",
        f"{100 * record['labels_equal']:.3f}",
    )


def _extrapolated(record: Record, name: str) -> Iterator[Part]:
    rows = [(contender, f"{seconds:.0f}") for contender, seconds in record["seconds"].items()]
    yield Text(f"{record['case']} ({record['inference']}): {record['how']}.")
    yield Table(("extrapolated, not measured", "seconds"), rows)


def _accuracy(record: Record, name: str) -> Iterator[Part]:
    yield Heading(record["case"], 3)
    yield Text(f"{record['inference']}; {record['pictures']} pictures, {record['labelled']} of them with labels.")
    head = ("", "mIoU %", "pixel accuracy %", "labels equal %", "on clear pixels %", "at boundaries %")
    kinds = ("all", "clear", "boundary")
    rows = [
        (
            row["name"],
            percent(row["miou"]),
            percent(row["pixel_accuracy"]),
            *(percent(row["agreement"][k]) for k in kinds),
        )
        for row in record["rows"]
    ]
    yield Table(head, rows)
    key = "iou" if record["labelled"] else "class_agreement"
    shown = [i for i in range(len(record["classes"])) if any(row[key][i] is not None for row in record["rows"])]
    against = "the labels" if record["labelled"] else "the checkpoint's labels"
    yield Table(
        (f"IoU % with {against}", *(row["name"] for row in record["rows"])),
        [(record["classes"][i], *(percent(row[key][i]) for row in record["rows"])) for i in shown],
    )


def _accuracy_against_speed(name: str, data: Result) -> Iterator[Part]:
    """A picture for each accuracy record whose bundles were timed with the same preset in the same result."""
    for number, record in enumerate(of_kind(data, "accuracy")):
        seconds = {
            one["name"]: one["summary"]["p50"]
            for latency in of_kind(data, "latency")
            if (latency.get("recipe"), latency.get("preset")) == (record["recipe"], record["preset"])
            for one in latency["contenders"]
            if one["status"] == "timed"
        }
        labelled = bool(record["labelled"])
        points = []
        for row in record["rows"]:
            share = row["miou"] if labelled else row["agreement"]["all"]
            timed = seconds.get("reference" if row["name"] == "checkpoint" else row["name"])
            if share is not None and timed is not None:
                points.append((row["name"], timed, share))
        if points:
            svg = plots.accuracy_against_speed(points, "mIoU %" if labelled else "labels equal %")
            yield Figure(f"{_stem(name)}-accuracy-speed-{number + 1}", svg, f"{record['case']}: accuracy against speed")


def _limit(record: Record, name: str) -> Iterator[Part]:
    yield Heading(f"{record['name']}, {record['case']}", 3)
    rates = record["rates"]
    stated = [f"{kernel} {kind} {v / 1e9:.0f}·10⁹/s" for kind in ("fp32", "int8") for kernel, v in rates[kind].items()]
    stated += [f"memory {kernel} {v / 1e9:.1f} GB/s" for kernel, v in rates["memory"].items()]
    yield Text(f"Measured in the same run with {record['threads']} threads: {', '.join(stated)}.")
    rows = [
        (
            s["name"],
            f"{s['operations'] / 1e9:.2f}",
            f"{s['bytes'] / 1e6:.1f}",
            f"{1e3 * s['seconds']:.1f}",
            f"{1e3 * s['floor']:.1f}",
            f"{100 * s['share']:.0f}",
            s["bound"],
        )
        for s in (*record["stages"], record["total"])
    ]
    yield Table(("stage", "GFLOP", "least MB", "ms", "floor ms", "floor / time %", "bound by"), rows)
    yield Text(f"Each block alone; the network as one takes {1e3 * record['network_seconds']:.1f} ms.")
    yield Figure(f"{_stem(name)}-roofline", plots.roofline(record), f"{record['name']}: roofline")


def _growth(record: Record, name: str) -> Iterator[Part]:
    rows = [(f"{x:g}", f"{s:.4g}") for x, s in zip(record["x"], record["seconds"], strict=True)]
    yield Heading(record["case"], 3)
    yield Text(
        f"seconds ∝ {record['what']}^{record['exponent']:.2f} (standard error {record['error']:.2f}); "
        f"expected {record['expected']}: {record['why']}."
    )
    yield Table((record["what"], "seconds"), rows)
    yield Figure(_stem(name), plots.growth(record), f"{record['case']}: growth")


def _instructions(record: Record, name: str) -> Iterator[Part]:
    rows = [(stage, f"{count:,}") for stage, count in record["stages"].items()]
    yield Text(f"{record['case']}, {record['tool']}; one thread, one picture.")
    yield Table(("host stage", "instructions"), rows)


def foreign(name: str, data: dict[str, Any]) -> list[Part]:
    """A JSON of another layout, such as a GPU check's: each step with its figures, as they are."""
    steps = data.get("steps") or data.get("checks") or data
    items = steps.items() if isinstance(steps, dict) else ((str(i), step) for i, step in enumerate(steps))
    rows = [(str(key), ", ".join(f"{k} {v}" for k, v in _flat(value))) for key, value in items]
    return [Heading(name), Text("Not measured by these benchmarks; shown as it was written."), Table(("", ""), rows)]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{path}.{number}")
    else:
        yield path, " ".join(str(value).split())[:200]


def _stem(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


def _each(one: Callable[[Record, str], Iterator[Part]]) -> Section:
    """A section that shows one record after the other."""

    def section(records: Sequence[Record], name: str) -> Iterator[Part]:
        for i, record in enumerate(records):
            yield from one(record, f"{name}-{i + 1}")

    return section


Section = Callable[[Sequence[Record], str], Iterator[Part]]
_SECTIONS: dict[str, tuple[str, Section]] = {
    "latency": ("Latency", _each(_latency)),
    "extrapolated": ("Extrapolated", _each(_extrapolated)),
    "postprocess": ("From scores to labels", _postprocess),
    "accuracy": ("Accuracy", _each(_accuracy)),
    "limit": ("The limit", _each(_limit)),
    "growth": ("How cost grows", _each(_growth)),
    "instructions": ("Instructions of the host stages", _each(_instructions)),
    "gpu_check": ("GPU check: figures", _each(gpu_check.section)),
}
KINDS: Sequence[str] = tuple(_SECTIONS)
