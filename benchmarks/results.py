"""Result files: one JSON object with what was measured, when, on what, and by which command.

    {"schema": 1, "date", "machine": {...}, "records": [{"kind", "case", ...}], "gaps": [{"what", "why"}]}

A record is what one measurement says; its ``kind`` (latency, accuracy, postprocess, limit, growth, precision, …)
decides its other fields; it has a ``date`` of its own where the file was made in several runs. A gap names what should
have been measured and could not be.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import machine
from isnet_trt.errors import SettingsError
from isnet_trt.files import replacing

SCHEMA = 1
FOLDER = Path(__file__).parent / "results"
Record = dict[str, Any]
Result = dict[str, Any]


def gap(what: str, why: str) -> Record:
    """What could not be measured, and why."""
    return {"what": what, "why": " ".join(why.split())}


def now() -> str:
    """The date and time in UTC, to the second (ISO 8601)."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def dates(data: Result) -> str:
    """The day, or the first and the last, on which the records of a result were measured."""
    days = sorted({record.get("date", data["date"])[:10] for record in data["records"]} or {data["date"][:10]})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def result(records: Iterable[Record], gaps: Iterable[Record], **about: Any) -> Result:
    """Records with date, machine, versions and command around them."""
    head = {"schema": SCHEMA, "date": now(), "machine": machine.describe()}
    return {**head, **about, "records": list(records), "gaps": list(gaps)}


def write(path: str | os.PathLike[str], data: Result) -> None:
    """Write a result whole or not at all; raises what `write_text` raises."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` through a temporary file beside ``path``; its folder is made where it is missing.

    Raises:
        SettingsError: the file cannot be written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            temporary.write_text(text, "utf-8")
    except OSError as error:
        raise SettingsError(f"{target} cannot be written: {error.strerror}") from None


def read(path: str | os.PathLike[str]) -> Result:
    """A result file.

    Raises:
        SettingsError: it cannot be read, is no JSON, or no result of this layout.
    """
    data = load_json(path)
    if data.get("schema") != SCHEMA or not isinstance(data.get("records"), list):
        again = "measure again with python -m benchmarks.suite or python -m benchmarks.latency"
        raise SettingsError(f"{path} is no result of schema {SCHEMA} (it has {data.get('schema')!r}); {again}")
    return data


def read_earlier(path: str | os.PathLike[str]) -> Result:
    """A result file whose records others may join: measured on this machine, with the versions that are installed.

    Raises:
        SettingsError: it was measured elsewhere or with other versions, or what `read` raises.
    """
    earlier, here = read(path), machine.describe()
    for about in ("processor", "cores", "system", "versions"):
        if earlier["machine"].get(about) != here[about]:
            raise SettingsError(
                f"{path} was measured with {about} {earlier['machine'].get(about)}, here it is {here[about]}: "
                "results do not mix; give another --out"
            )
    return earlier


def load_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        SettingsError: it cannot be read or is no JSON object.
    """
    try:
        data = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise SettingsError(f"{path} holds no JSON object")
    return data


def of_kind(data: Result, kind: str) -> list[Record]:
    """The records of one kind, in order."""
    return [record for record in data["records"] if record.get("kind") == kind]
