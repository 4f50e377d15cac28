"""The CSV tables of a run: read back whole or refused, rewritten as a whole, appended to row by row."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from isnet_trt.errors import TrainingError
from isnet_trt.files import regular_file_bytes, write_file

_LARGEST = 1 << 28
"""Bytes; a run of ten million iterations writes less."""
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
Row = Sequence[object]


class Table:
    """A table whose first two columns are iteration and epoch, whole numbers from 1 on, and the others figures.

    Rows are in the order of their iterations. The file is opened for each row: a killed run loses none.
    """

    def __init__(self, path: Path, header: Sequence[str]) -> None:
        self.path, self.header = path, list(header)
        self.iterations: list[int] = []
        """Of the rows."""

    def read(self, last: int, fewest: int = 0) -> list[list[str]]:
        """The rows up to iteration ``last``; none where there is no file, which the user may have deleted.

        Later rows were written after the checkpoint that a run goes on from, the last of them perhaps in part.

        Raises:
            TrainingError: the file cannot be read, has other columns, or a row of those that are needed is damaged or
                missing; ``fewest`` of them were there when the checkpoint was written.
        """
        if not os.path.lexists(self.path):
            return []
        lines, torn = self._lines()
        if not (last or lines or torn):  # a crash of the machine may leave an empty file of a run that saved nothing
            return []
        if lines[:1] != [self.header]:
            raise self._unusable(f"its columns are {_cells(lines[0] if lines else [])}, not {_cells(self.header)}")
        rows: list[list[str]] = []
        for number, cells in enumerate(lines[1:], 2):
            if _whole(cells, 0) > last:
                break
            earlier = int(rows[-1][0]) if rows else 0
            if not self._is_row(cells) or int(cells[0]) <= earlier:
                raise self._unusable(f"row {number} ({_cells(cells)}) is damaged or in the wrong place")
            rows.append(cells)
        if len(rows) < fewest or (len(torn) > 1 and 0 < _whole(torn, 0) < last):
            raise self._unusable(f"rows are missing: it ends after iteration {rows[-1][0] if rows else 0}")
        return rows

    def _lines(self) -> tuple[list[list[str]], list[str]]:
        """The complete lines, and the last one if it has no end, as a killed run may leave it."""
        content = regular_file_bytes(self.path, _LARGEST, TrainingError)
        try:
            text = content.decode("utf-8-sig")
            lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        except UnicodeDecodeError as error:
            raise self._unusable(f"it is not UTF-8 text (byte {error.start})") from None
        except csv.Error as error:
            raise self._unusable(f"it is no CSV table ({error})") from None
        torn = lines.pop() if lines and not text.endswith("\n") else []
        return lines, torn

    def _is_row(self, cells: Sequence[str]) -> bool:
        if len(cells) != len(self.header) or min(_whole(cells, 0), _whole(cells, 1)) < 1:
            return False
        try:
            return all(float(cell) is not None for cell in cells[2:])
        except ValueError:
            return False

    def _unusable(self, reason: str) -> TrainingError:
        return TrainingError(
            f"{self.path} is not the record of this run: {reason}. Nothing was changed: restore the file, or move it "
            "away to go on with a new table; the checkpoints do not depend on it"
        )

    def begin(self, rows: Sequence[Sequence[str]]) -> None:
        """Write the table anew, as a whole: a run that is killed while it resumes keeps its record.

        Raises:
            TrainingError: it cannot be written; it is as it was.
        """
        write_file(self.path, _text([self.header, *rows]).encode(), TrainingError)
        self.iterations = [int(row[0]) for row in rows]

    def append(self, iteration: int, row: Row) -> None:
        """Add the row of an iteration, without the iteration itself.

        Raises:
            TrainingError: it cannot be written.
        """
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | _NO_LINK)
            with os.fdopen(descriptor, "ab") as file:
                file.write(_text([[iteration, *row]]).encode())
        except OSError as error:
            raise TrainingError(
                f"{self.path}: a row cannot be appended ({error.strerror}); the last checkpoint stays: see to it, then "
                "go on with --resume"
            ) from None
        self.iterations.append(iteration)


def _whole(cells: Sequence[str], column: int) -> int:
    """The whole number in a cell; 0 if there is none."""
    text = cells[column] if column < len(cells) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0


def _text(rows: Sequence[Row]) -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def _cells(cells: Sequence[str]) -> str:
    """Cells for a message, at most 80 characters."""
    text = ",".join(cells)
    return repr(text if len(text) <= 80 else text[:80] + "…")
