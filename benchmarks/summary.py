"""A result in short: every bundle and the merge beside the plain reference form."""

from __future__ import annotations

from benchmarks.pages import Part, Table, Text
from benchmarks.results import Record, Result, of_kind

MIB = 2**20


def parts(data: Result) -> list[Part]:
    """Tables of the bundles and of the merge beside the reference; nothing where neither was measured."""
    found: list[Part] = []
    rows = [row for record in of_kind(data, "latency") for row in _rows(record)]
    if rows:
        head = ("picture to labels", "seconds", "reference, s", "times as fast (interval)", "labels equal %", "MiB")
        found.append(Table(head, rows))
    post = [_post_row(record) for record in of_kind(data, "postprocess")]
    if post:
        head = ("scores to labels", "ms", "reference, ms", "times as fast (interval)", "labels equal %", "MiB")
        found.append(Table(head, post))
    if rows or post:
        found.append(Text("MiB: peak memory beyond the loaded model, isnet_trt / reference."))
    warned = sum(len(record.get("warnings", [])) for record in data["records"])
    return [*found, Text(f"{warned} of the figures carry a warning of noise; see the result.")] if warned else found


def _rows(record: Record) -> list[tuple[str, ...]]:
    """A row for each timed bundle; every peer that is not the reference is in the full report only."""
    timed = {one["name"]: one for one in record["contenders"] if one["status"] == "timed"}
    reference = timed.get("reference")
    rows: list[tuple[str, ...]] = []
    for one in timed.values():
        if one["kind"] != "bundle":
            continue
        ratio = next((r for r in record["ratios"] if (r["of"], r["over"]) == (one["name"], "reference")), None)
        rows.append(
            (
                f"{record['case']}, {one['name'].removeprefix('isnet_trt ')}",
                f"{one['summary']['p50']:.2f}",
                f"{reference['summary']['p50']:.2f}" if reference else "–",
                times(ratio, 2) if ratio else "–",
                f"{100 * one['agreement']['all']:.2f}",
                f"{mib(one['memory']['beyond'])} / {mib(reference['memory']['beyond']) if reference else '–'}",
            )
        )
    return rows


def _post_row(record: Record) -> tuple[str, ...]:
    ours, theirs = (record["summary"][side]["p50"] for side in ("isnet_trt", "reference"))
    return (
        record["case"],
        f"{1e3 * ours:.0f}",
        f"{1e3 * theirs:.0f}",
        times(record["ratio"], 1),
        f"{100 * record['labels_equal']:.3f}",
        f"{mib(record['memory']['isnet_trt'])} / {mib(record['memory']['reference'])}",
    )


def times(ratio: Record, digits: int) -> str:
    """A ratio with its interval and coverage."""
    middle, low, high = (f"{ratio[key]:.{digits}f}" for key in ("p50", "low", "high"))
    if ratio["n"] == 1:
        return f"{middle} (one round)"
    return f"{middle} ({low}–{high}, {100 * ratio['coverage']:.0f} %)"


def mib(size: int | None) -> str:
    """Bytes in MiB, or that they are not known."""
    return "not available" if size is None else f"{size / MIB:.0f}"
