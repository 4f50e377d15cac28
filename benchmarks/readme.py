"""The README's table: made from a committed result, between two markers, and known to be stale when it is."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import results, summary
from benchmarks.pages import Part, Text, markdown
from benchmarks.results import Result
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


def about(data: Result, source: str) -> Part:
    """On what and when it was measured."""
    machine = data["machine"]
    return Text(f"{machine['processor']}, {machine['cores']} cores in use, {results.dates(data)}; `{source}`.")


def block(data: Result, source: str) -> str:
    """Markers, source and tables, as they stand in the page."""
    return f"{BEGIN}\n<!-- from {source} -->\n{markdown([about(data, source), *summary.parts(data)]).strip()}\n{END}"
