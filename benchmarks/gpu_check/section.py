"""What a GPU check says, as parts of a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.gpu_check.check import FAILED, MISSING, PASSED, Row
from benchmarks.gpu_check.pages import Heading, Part, Table, Text

_MOST_ROWS = 60


def page(name: str, data: dict[str, Any]) -> list[Part]:
    """A result that holds nothing but GPU checks, as the page beside it; it needs none of the other benchmarks."""
    records = data["records"]
    found: list[Part] = [Heading(name, 1), Text(f"Checked {data['date']} by `{data['machine']['command']}`.")]
    found += summary(records)
    return found + [part for record in records for part in section(record, name)]


def summary(records: Sequence[Row]) -> list[Part]:
    """How many checks passed, failed and could not run; one line each. Nothing where there are no records."""
    if not records:
        return []
    rows = [(r["case"], r["title"], r["status"], f"{r['seconds']:.1f}", r["why"]) for r in records]
    return [
        Heading("GPU check: summary", 2),
        Text(counted(records)),
        Table(("check", "what it shows", "status", "seconds", "why"), rows),
    ]


def counted(records: Sequence[Row]) -> str:
    """Such as "12 passed, 1 failed, 3 could not run"."""
    return ", ".join(f"{sum(r['status'] == word for r in records)} {word}" for word in (PASSED, FAILED, MISSING))


def section(record: Row, name: str) -> Iterator[Part]:
    """One check: its figures and its rows; a check that could not run is in the summary alone."""
    if not record["figures"] and not record["rows"] and not record["missing"]:
        return
    yield Heading(f"{record['case']}: {record['title']}", 3)
    if record["status"] == FAILED:
        yield Text(record["why"], warning=True)
    if record["figures"]:
        yield Table(("figure", ""), [(key, text(value)) for key, value in record["figures"].items()])
    if record["rows"]:
        yield table(record["rows"])
    for one in record["missing"]:
        yield Text(f"Not run: {one['what']}: {one['why']}")


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Rows of different columns as one table; the last says how many more there are."""
    head = list(dict.fromkeys(key for row in rows for key in row))
    shown = [tuple(text(row.get(key, "")) for key in head) for row in rows[:_MOST_ROWS]]
    if len(rows) > _MOST_ROWS:
        shown.append((f"… {len(rows) - _MOST_ROWS} more in the JSON", *[""] * (len(head) - 1)))
    return Table(head, shown)


def text(value: Any) -> str:
    """A cell: numbers with four figures."""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(text, value))
    return " ".join(str(value).split())  # a cell is one line, and libraries write several


def line(record: Row) -> str:
    """One check for a terminal: status, name, seconds, why, and its rows in short."""
    told = f"{record['status']:13} {record['case']:28} {record['seconds']:7.1f} s"
    why = record["why"] or f"{len(record['rows'])} rows" * bool(record["rows"])
    return "  ".join(filter(None, (told, why)))
