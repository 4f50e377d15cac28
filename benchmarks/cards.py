"""GPU results side by side: what ran on which card, and the times of the kernels, stages and networks there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.results import Record, Result, dates, of_kind
from benchmarks.sections import MARK, Lines, case_title, limit_note, table

_NEEDS_NO_GPU = ("plans", "rtx.ahead_of_time", "rtx.plugins_ahead", "bundles.given")
"""Cases of older results that ran without a GPU only, or on bundles of the user."""


class _Timed(NamedTuple):
    """A figure of a row: its key, its unit, and the key of its share of a limit."""

    key: str
    unit: str
    share: str = ""


_FIGURES = (
    _Timed("µs", "µs", "floor reached %"),
    _Timed("TFLOP/s", "TFLOP/s", "of the matrix rate %"),
    _Timed("call ms", "ms"),
    _Timed("rate", ""),
    _Timed("ms", "ms"),
)
"""In order of preference; a row has one of them or is no measurement."""
_LABELS = ("what", "case", "stage", "network", "bundle", "preset", "type", "shape", "weights")
"""Keys of a row that tell it from the others of its case."""


def card(data: Result) -> str:
    """The name of a result's GPU and when it was measured; empty without GPU checks."""
    gpus = data["machine"].get("gpus")
    has_checks = isinstance(gpus, list) and of_kind(data, "gpu_check")
    return f"{gpus[0]['name']}, {dates(data)}" if has_checks else ""


def page(data: Sequence[Result]) -> Lines:
    """Paragraphs of the page that puts the cards side by side."""
    cards = list(dict.fromkeys(filter(None, map(card, data))))
    yield "# GPUs side by side"
    yield (
        f"Measured on {'; '.join(cards)}."
        + ("" if len(cards) > 1 else " No other card has been measured.")
        + " The figures are those of the code on that day; docs/gpu.md names what has been rewritten since."
    )
    yield from ("## Times", *times(data))
    yield from ("## Tests", gpu_table(data))


def times(data: Sequence[Result]) -> Lines:
    """A table of all measured times with a column for each card, and a note where one is above its limit."""
    columns: dict[str, dict[str, str]] = {}
    for result in data:
        for name, cell in _cells(result):
            columns.setdefault(name, {})[card(result)] = cell
    yield table({"measurement": name} | cells for name, cells in columns.items())
    yield from limit_note([row for result in data for row in _rows(result)])
    yield "The limit is the time that the operations and the bytes take at the rates measured on the same card."
    yield "T/s: 10¹² operations a second; a multiplication and an addition are two."


def _rows(result: Result) -> Iterator[Record]:
    yield from (row for record in of_kind(result, "gpu_check") for row in record.get("rows", ()))


def _cells(result: Result) -> Iterator[tuple[str, str]]:
    """Name and text of each figure of a result."""
    for record in of_kind(result, "gpu_check") if card(result) else ():
        group = case_title({**record, "case": record["case"].replace("speed.", "kernel ").replace("latency.", "")})
        for row in record.get("rows", ()):
            figure = next((figure for figure in _FIGURES if figure.key in row), None)
            if figure is not None:
                about = ", ".join(str(row[key]) for key in _LABELS if row.get(key) not in (None, ""))
                yield f"{group}: {about}", _text(row, figure)


def _text(row: Record, figure: _Timed) -> str:
    value, share = row[figure.key], row.get(figure.share)
    number = (f"{value:,.0f}" if value >= 10_000 else f"{value:.4g}") if isinstance(value, float) else str(value)
    limit = f" ({share:.0f} % of the limit{MARK * (share > 100)})" if share is not None else ""
    return " ".join(filter(None, (number, figure.unit))) + limit


def gpu_table(data: Sequence[Result]) -> str:
    """What has run on which GPU: a row for each group of tests, a column for each result with records of them."""
    columns: dict[str, dict[str, list[Record]]] = {}
    for result in data:
        for record in of_kind(result, "gpu_check") if card(result) else ():
            if record["case"] not in _NEEDS_NO_GPU:
                columns.setdefault(card(result), {}).setdefault(_group(record["case"]), []).append(record)
    groups = dict.fromkeys(group for column in columns.values() for group in column)
    outcomes = ({card: _outcome(column.get(group, [])) for card, column in columns.items()} for group in groups)
    rows = ({"tests": f"`{group}`"} | outcome for group, outcome in zip(groups, outcomes, strict=True))
    return re.sub("-{3,}", "---", re.sub(" +", " ", table(rows)))


def _group(case: str) -> str:
    """The first word of a name; bundles and refusals by engine, since each library runs or does not."""
    first, _, rest = case.partition(".")
    return f"{first}.*" if rest and first not in ("bundles", "refusals") else case


def _outcome(records: Sequence[Record], most: int = 160) -> str:
    """Such as "8 passed" or "2 passed; failed: whole.ADE (the reason)"; one reason stands once."""
    if not records:
        return "not run"
    ends: dict[tuple[str, str], list[str]] = {}
    for record in records:
        why = " ".join(record["why"].split()).partition("; ")[0]
        why = why if len(why) <= most else f"{why[:most]} …"
        ends.setdefault((record["status"], why), []).append(record["case"].partition(".")[2] or record["case"])
    passed = len(ends.pop(("passed", ""), ()))
    count = [f"{passed} passed" if len(records) > 1 else "passed"] * bool(passed)
    return "; ".join(count + [f"{status}: {', '.join(cases)} ({why})" for (status, why), cases in ends.items()])
