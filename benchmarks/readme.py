"""The README's table: made from a committed result, between two markers, and known to be stale when it is."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import results
from benchmarks.pages import Part, Table, Text, markdown
from benchmarks.results import Record, Result, of_kind
from benchmarks.sections import mib
from isnet_trt.errors import SettingsError

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
_SOURCE = re.compile(r"<!-- from (\S+) -->")
_BLOCK = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)


def update(page: Path, source: Path) -> None:
    """Make the table of ``page`` anew from the result ``source``.

    Raises:
        SettingsError: the page has no markers, or the result cannot be read.
    """
    text = _read(page)
    named = _relative(source, page)
    results.write_text(page, _BLOCK.sub(lambda _: block(results.read(source), named), text, count=1))


def stale(page: Path) -> str:
    """Why the table of ``page`` is not what its result gives; empty where it is.

    Raises:
        SettingsError: the page has no markers.
    """
    text = _read(page)
    found = _BLOCK.search(text)
    assert found is not None
    source = _SOURCE.search(found.group())
    command = f"python -m benchmarks.report FILE --readme {page.name}"
    if source is None:
        return f"{page}: nothing is between the markers; {command}"
    try:
        wanted = block(results.read(page.parent / source.group(1)), source.group(1))
    except SettingsError as error:
        return f"{page}: {error}; {command}"
    return "" if found.group() == wanted else f"{page}: the table is not what {source.group(1)} gives; {command}"


def _read(page: Path) -> str:
    try:
        text = page.read_text("utf-8")
    except OSError as error:
        raise SettingsError(f"{page} cannot be read: {error.strerror}") from None
    if not _BLOCK.search(text):
        raise SettingsError(f"{page} has no markers; add the lines {BEGIN} and {END} where the table shall be")
    return text


def _relative(source: Path, page: Path) -> str:
    try:
        return source.resolve().relative_to(page.resolve().parent).as_posix()
    except ValueError:
        raise SettingsError(
            f"{source} lies outside the folder of {page}: a table must come from a committed result"
        ) from None


def block(data: Result, source: str) -> str:
    """Markers, source and tables, as they stand in the page."""
    return f"{BEGIN}\n<!-- from {source} -->\n{markdown(_parts(data, source)).strip()}\n{END}"


def _parts(data: Result, source: str) -> list[Part]:
    machine = data["machine"]
    about = f"{machine['processor']}, {machine['cores']} cores in use, {data['date'][:10]}; `{source}`."
    parts: list[Part] = [Text(about)]
    rows = [row for record in of_kind(data, "latency") for row in _rows(record)]
    if rows:
        head = ("picture to labels", "seconds", "reference, s", "times as fast (interval)", "labels equal %", "MiB")
        parts.append(Table(head, rows))
    post = [_post_row(record) for record in of_kind(data, "postprocess")]
    if post:
        head = ("scores to labels", "ms", "reference, ms", "times as fast (interval)", "labels equal %", "MiB")
        parts.append(Table(head, post))
    if rows or post:
        parts.append(Text("MiB: peak memory beyond the loaded model, isnet_trt / reference."))
    warned = sum(len(record.get("warnings", [])) for record in data["records"])
    return [*parts, Text(f"{warned} of the figures carry a warning of noise; see the result.")] if warned else parts


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
