"""Result records as Markdown, of which printed tables, report pages and tables of the documentation are made."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks import network_sections, stats
from benchmarks.results import Record, Result, dates, of_kind
from isnet_trt.metrics import percent, rounded

UNKNOWN = "not available"
_MOST_ROWS = 60
_NUMBER = re.compile(r"[-+≈]?\d[^a-z]*(e[-+]\d+)?(\([^)]*\))?")
Lines = Iterator[str]


def table(rows: Iterable[Mapping[str, object]]) -> str:
    """A Markdown table with a column for each key, numbers on the right; empty without rows."""
    cells = [{key: _cell(value) for key, value in row.items()} for row in rows]
    head = dict.fromkeys(key for row in cells for key in row)
    sides = ["right" if _is_number([row.get(key, "") for row in cells]) else "left" for key in head]
    from tabulate import tabulate

    return tabulate(cells, headers="keys", tablefmt="pipe", disable_numparse=True, colalign=sides) if cells else ""


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(inner)}" for key, inner in value.items()) or "none"
    text = "; ".join(map(_cell, value)) if isinstance(value, list | tuple) else str(value)
    plain = " ".join(text.split())
    return plain.replace("|", "\\|").replace("__", "\\_\\_").replace("<", "&lt;")


def _is_number(column: Sequence[str]) -> bool:
    """Whether a column holds numbers, such as "1.92 (1.64–2.06, 94 %)" or "5 / 400"; what is missing counts as one."""
    present = [cell for cell in column if cell not in ("", "–", UNKNOWN)]
    return bool(present) and all(_NUMBER.fullmatch(cell) for cell in present)


def _warnings(warnings: Iterable[str]) -> Lines:
    yield from (f"**Warning:** {warning}" for warning in warnings)


def mib(size: int | None) -> str:
    """Bytes in MiB, or that they are not known."""
    return UNKNOWN if size is None else f"{size / 2**20:.0f}"


def times(ratio: Record, digits: int) -> str:
    """A ratio with its interval and coverage."""
    middle, low, high = (f"{ratio[key]:.{digits}f}" for key in ("p50", "low", "high"))
    interval = "one round" if ratio["n"] == 1 else f"{low}–{high}, {100 * ratio['coverage']:.0f} %"
    return f"{middle} ({interval})"


def text(records: Sequence[Record]) -> str:
    """Records as the commands print them, kind by kind."""
    kinds = dict.fromkeys(record["kind"] for record in records)
    return "\n\n".join(part for kind in kinds for part in section(kind, [r for r in records if r["kind"] == kind]))


def section(kind: str, records: Sequence[Record]) -> list[str]:
    """Paragraphs, headings and tables of the records of one kind."""
    return list(filter(None, SECTIONS.get(kind, ("", _checks))[1](records)))


def provenance(data: Result) -> str:
    """When, by which command and on what a result was measured; a GPU by its name."""
    about = data["machine"]
    cards = [gpu["name"] for gpu in about["gpus"]] if isinstance(about.get("gpus"), list) else []
    return f"Measured {dates(data)} on {', '.join(cards) or about['processor']}, last by `{about['command']}`."


def machine(data: Result) -> str:
    """All that is known of the machine, as a table."""
    return table({"machine": k.replace("_", " "), "": v} for k, v in data["machine"].items() if k != "command")


def case_title(record: Record) -> str:
    """The case of a record, with a note where the weights of its network are synthetic."""
    return f"{record['case']} (synthetic weights)" if record.get("weights") == "synthetic" else str(record["case"])


def noise(data: Result) -> Lines:
    """All warnings of noise in one table, each once; nothing where there is none."""
    warned: dict[tuple[str, str], list[str]] = {}
    for record in data["records"]:
        for warning in record.get("warnings", ()):
            who, _, what = warning.partition(": ")
            warned.setdefault((case_title(record), what or who), []).append(who if what else "all")
        for row in record.get("rows", ()):
            if row.get("spread %", 0) > 100 * stats.NOISY:
                what = f"the middle half of the rounds spans {row['spread %']:.0f} % of the median"
                warned.setdefault((case_title(record), what), []).append(str(row.get("case", row.get("stage", ""))))
    if warned:
        count = sum(map(len, warned.values()))
        limit = f"{100 * stats.NOISY:.0f} %"
        yield (
            f"{count} figures come from noisy rounds: the middle half of the rounds spans more than {limit} of the "
            f"median, or there were fewer than {stats.FEW} rounds. Differences of that size between them say nothing."
        )
        yield table(
            {"case": case, "figures of": ", ".join(names), "noise": what} for (case, what), names in warned.items()
        )


MARK = " \\*"
"""What stands behind a share above 100 % and leads to the note of `limit_note`."""
LIMIT_SHARES = ("floor reached %", "of the matrix rate %", "floor / time %")
"""Keys of rows that hold a share of a limit, in per cent."""


def limit_note(rows: Iterable[Mapping[str, Any]]) -> Lines:
    """A note on shares of a limit above 100 %, where there are any."""
    if any(float(str(row.get(key) or 0).rstrip(" *\\")) > 100 for row in rows for key in LIMIT_SHARES):
        yield (
            "\\* Above 100 %: the floor is computed from rates that were measured in the same run with other work "
            "(a matrix product, a convolution, a copy). This work ran faster than those: its data were in a cache, its "
            "kernel is better than the one measured, or the clock was higher. Read it as: at the limit."
        )


def _marked(share: float) -> str:
    """A share of a limit in per cent, with a mark above 100 that `limit_note` explains."""
    return f"{share:.0f}{MARK * (share > 100)}"


def summary(data: Result, with_merges: bool = True) -> Lines:
    """Tables of the bundles and of the merge beside the plain reference form; nothing where neither was measured."""
    latency, merges = of_kind(data, "latency"), of_kind(data, "postprocess") if with_merges else []
    yield table(row for record in latency for row in _bundle_rows(record))
    yield _merge_table(merges)
    for kind in ("network", "pipeline"):
        if records := of_kind(data, kind):
            yield from SECTIONS[kind][1](records)
    if latency or merges:
        yield "MiB: peak memory beyond the loaded model, isnet_trt / reference."
    if any(record.get("weights") == "synthetic" for record in latency):
        yield (
            "Synthetic weights: the published network with weights made by a formula. They change neither the work "
            "nor its time, but their labels are arbitrary: how many are equal says less than with trained weights."
        )
    if warned := sum(len(record.get("warnings", [])) for record in data["records"]):
        yield f"Warnings of noise: {warned}, listed in the report that `python -m benchmarks.report` makes."


def _bundle_rows(record: Record) -> Iterator[Mapping[str, str]]:
    """A row for each timed bundle; peers other than the reference are in the full report only."""
    contenders = {contender["name"]: contender for contender in timed(record)}
    reference = contenders.get("reference")
    ratios = {ratio["of"]: ratio for ratio in record["ratios"] if ratio["over"] == "reference"}
    for name, bundle in contenders.items():
        if bundle["kind"] == "bundle":
            beyond = mib(reference["memory"]["beyond"]) if reference else "–"
            yield {
                "picture to labels": f"{case_title(record)}, {name.removeprefix('isnet_trt ')}",
                "seconds": f"{bundle['summary']['p50']:.2f}",
                "reference, s": f"{reference['summary']['p50']:.2f}" if reference else "–",
                "times as fast (interval)": times(ratios[name], 2) if name in ratios else "–",
                "labels equal %": percent(bundle["agreement"]["all"]),
                "MiB": f"{mib(bundle['memory']['beyond'])} / {beyond}",
            }


def _latency(records: Sequence[Record]) -> Lines:
    for record in records:
        height, width = record["picture"]
        rounds = f"{record['rounds']} round{'s' * (record['rounds'] > 1)}"
        rounds += ", the checking run is the first" if record["first_counts"] else ""
        compared = f"; labels compared with those of {record['labels_of']}" if record.get("labels_of") else ""
        windows = f"{record['windows']} window{'s' * (record['windows'] > 1)}"
        yield f"### {case_title(record)}"
        yield f"{height}×{width}, {record['inference']}, {windows}; {rounds}{compared}."
        yield table(_contender_rows(timed(record)))
        yield table(
            {"seconds by stage": c["name"]} | {stage: f"{seconds:.3g}" for stage, seconds in c["stages"].items()}
            for c in timed(record)
        )
        yield table(
            {"contender": r["of"], "over": r["over"], "times as fast (interval)": times(r, 2), "rounds": str(r["n"])}
            for r in record["ratios"]
        )
        yield "\n".join(f"- {c['name']}: {c['description']}" for c in record["contenders"])
        refused = [c for c in record["contenders"] if c["status"] != "timed"]
        yield from _warnings([*(f"{c['name']} is not timed: {c['why']}" for c in refused), *record["warnings"]])


def timed(record: Record) -> list[Record]:
    """The timed contenders of a latency record."""
    return [contender for contender in record["contenders"] if contender["status"] == "timed"]


def _contender_rows(contenders: Sequence[Record]) -> Iterator[Mapping[str, str]]:
    """Figures of the contenders; GPU memory and energy only where they are known of one."""
    on_gpu = any(c["memory"]["device"] is not None for c in contenders)
    spent = any(c["energy_j"] for c in contenders)
    for c in contenders:
        yield {
            "contender": c["name"],
            **{name: f"{c['summary'][key]:.3f}" for name, key in (("p50 s", "p50"), ("p90", "p90"), ("p99", "p99"))},
            "images/s": f"{c['images_per_s']:.3g}",
            "windows/s": f"{c['windows_per_s']:.3g}",
            "cores busy": f"{c['cores_busy']:.1f}",
            "labels equal %": percent(c["agreement"]["all"]),
            "beyond weights MiB": mib(c["memory"]["beyond"]),
            **({"on the GPU MiB": mib(c["memory"]["device"])} if on_gpu else {}),
            **({"J": ", ".join(f"{k} {v:.1f}" for k, v in c["energy_j"].items()) or UNKNOWN} if spent else {}),
        }


def _extrapolated(records: Sequence[Record]) -> Lines:
    for record in records:
        yield f"{case_title(record)} ({record['inference']}): {record['how']}."
        seconds = record["seconds"].items()
        yield table({"extrapolated, not measured": name, "seconds": f"{value:.0f}"} for name, value in seconds)


def _merge_table(records: Sequence[Record]) -> str:
    sides = ("isnet_trt", "reference")
    return table(
        {
            "scores to labels": record["case"],
            **{f"{side} ms": f"{1e3 * record['summary'][side]['p50']:.1f}" for side in sides},
            "times as fast (interval)": times(record["ratio"], 1),
            "labels equal %": percent(record["labels_equal"], 3),
            "MiB": " / ".join(mib(record["memory"][side]) for side in sides),
        }
        for record in records
    )


def _postprocess(records: Sequence[Record]) -> Lines:
    yield _merge_table(records)
    yield from _warnings(f"{record['case']}: {warning}" for record in records for warning in record["warnings"])


def _accuracy(records: Sequence[Record]) -> Lines:
    columns = {"labels equal %": "all", "on clear pixels %": "clear", "at boundaries %": "boundary"}
    for record in records:
        yield f"### {case_title(record)}"
        yield f"{record['inference']}; {record['pictures']} pictures, {record['labelled']} of them with labels."
        yield table(
            {"": row["name"], "mIoU %": percent(row["miou"]), "pixel accuracy %": percent(row["pixel_accuracy"])}
            | {name: percent(row["agreement"][key]) for name, key in columns.items()}
            for row in record["rows"]
        )
        key, against = ("iou", "the labels") if record["labelled"] else ("class_agreement", "the checkpoint's labels")
        yield table(
            {f"IoU % with {against}": name, **{row["name"]: percent(row[key][i]) for row in record["rows"]}}
            for i, name in enumerate(record["classes"])
            if any(row[key][i] is not None for row in record["rows"])
        )


def _limit(records: Sequence[Record]) -> Lines:
    for record in records:
        rates = record["rates"]
        stated = [f"{name} {kind} {r / 1e9:.0f}·10⁹/s" for kind in ("fp32", "int8") for name, r in rates[kind].items()]
        stated += [f"memory {name} {rate / 1e9:.1f} GB/s" for name, rate in rates["memory"].items()]
        yield f"### {record['name']}, {case_title(record)}"
        yield f"Measured in the same run with {record['threads']} threads: {', '.join(stated)}."
        yield table(
            {"stage": stage["name"], "GFLOP": f"{stage['operations'] / 1e9:.2f}"}
            | {"least MB": f"{stage['bytes'] / 1e6:.1f}", "ms": f"{1e3 * stage['seconds']:.1f}"}
            | {"floor ms": f"{1e3 * stage['floor']:.1f}", "floor / time %": _marked(100 * stage["share"])}
            | {"bound by": stage["bound"]}
            for stage in (*record["stages"], record["total"])
        )
        yield from limit_note({LIMIT_SHARES[-1]: 100 * stage["share"]} for stage in record["stages"])
        yield f"Each block alone; the network as one takes {1e3 * record['network_seconds']:.1f} ms."


def _growth(records: Sequence[Record]) -> Lines:
    for record in records:
        yield f"### {case_title(record)}"
        fit = f"{record['what']}^{record['exponent']:.2f} (standard error {record['error']:.2f})"
        yield f"seconds ∝ {fit}; expected {record['expected']}: {record['why']}."
        points = zip(record["x"], record["seconds"], strict=True)
        yield table({record["what"]: f"{x:g}", "seconds": f"{seconds:.4g}"} for x, seconds in points)


def _precision(records: Sequence[Record]) -> Lines:
    columns: dict[str, Callable[[Record], str]] = {
        "mIoU %": lambda scores: rounded(scores["miou"], 2, 100.0),
        "lost": lambda scores: f"{scores['lost']:+.2f}",
        "labels equal %": lambda scores: rounded(scores["equal"], 2, 100.0),
    }
    yield table(
        {"precision": record["case"], "engine": record["engine"], "graph, MB": f"{record['bytes'] / 1e6:.2f}"}
        | {f"{p}: {title}": cell(s) for p, s in record["scores"].items() for title, cell in columns.items()}
        for record in records
    )
    searched = [(f"{r['case']} ({r['engine']})", r["search"]["skip"]) for r in records if "search" in r]
    yield "\n".join(f"- {case} keeps {', '.join(blocks) or 'nothing'}" for case, blocks in searched)


def _networks(records: Sequence[Record]) -> Lines:
    yield table(map(network_sections.network_row, records))
    yield network_sections.NETWORKS_NOTE
    yield "\n".join(f"- {line}" for record in records for line in network_sections.refusals(record))


def _pipelines(records: Sequence[Record]) -> Lines:
    yield table(network_sections.pipeline_rows(records, memory=False))
    yield network_sections.PIPELINES_NOTE
    yield table(network_sections.pipeline_rows(records, memory=True))
    yield network_sections.MEMORY_NOTE
    yield "\n".join(f"- not timed: {reason}" for reason in network_sections.refused_contenders(records))


def _checks(records: Sequence[Record]) -> Lines:
    """Checks, such as those on a GPU: a table for each group (the name before the first dot), then their own rows."""
    counts = Counter(record.get("status", "measured") for record in records)
    yield ", ".join(f"{count} {status}" for status, count in counts.items()) + "."
    for group in dict.fromkeys(record["case"].partition(".")[0] for record in records):
        members = [record for record in records if record["case"].partition(".")[0] == group]
        yield f"### {group}"
        rows = list(map(_check_row, members))
        yield table({k: v for k, v in row.items() if any(other[k] != "" for other in rows)} for row in rows)
        for record in members:
            rows = record.get("rows", ())
            more = f", the first {_MOST_ROWS} of {len(rows)} rows" if len(rows) > _MOST_ROWS else ""
            yield f"**{case_title(record)}**{more}" if rows else ""
            yield table({k: _share(k, v) for k, v in row.items()} for row in rows[:_MOST_ROWS])
            yield from limit_note(rows[:_MOST_ROWS])
            yield "\n".join(f"- not run: {gap['what']}: {gap['why']}" for gap in record.get("missing", ()))


def _share(key: str, value: object) -> object:
    return _marked(value) if key in LIMIT_SHARES and isinstance(value, float) else value


def _check_row(record: Record) -> Mapping[str, object]:
    fields = {"kind", "case", "title", "status", "why", "seconds", "figures", "rows", "missing", "date", "part"}
    fields |= {"weights", "warnings"}
    figures = record.get("figures", {}) | {key: value for key, value in record.items() if key not in fields}
    check = ": ".join(filter(None, (case_title(record), record.get("title"))))
    outcome = {"status": record.get("status", ""), "seconds": record.get("seconds", "")}
    text = "; ".join(filter(None, (record.get("why"), figures and _cell(figures))))
    return {"check": check, **outcome, "figures": text}


def foreign(data: Mapping[str, Any]) -> Lines:
    """A JSON of another layout: each step with its figures, as they are."""
    steps = data.get("steps") or data.get("checks") or data
    items = steps.items() if isinstance(steps, dict) else ((str(i), step) for i, step in enumerate(steps))
    yield "Not measured by these benchmarks; shown as it was written."
    yield table({"step": key, "figures": value} for key, value in items)


SECTIONS: dict[str, tuple[str, Callable[[Sequence[Record]], Lines]]] = {
    "latency": ("End to end", _latency),
    "extrapolated": ("Extrapolated", _extrapolated),
    "postprocess": ("From scores to labels", _postprocess),
    "accuracy": ("Accuracy", _accuracy),
    "limit": ("The limit", _limit),
    "growth": ("How cost grows", _growth),
    "precision": ("Precision", _precision),
    "network": ("Networks of other libraries", _networks),
    "pipeline": ("Beside other tools", _pipelines),
    "gpu_check": ("GPU check", _checks),
}
"""Kind of record -> heading and function; records of other kinds are shown as checks."""
