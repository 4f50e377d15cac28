"""An answer of a check that keeps everything, for the tests to look at."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu_check.check import Answer


class Collected(Answer):
    """What a check answered: ``figures``, ``rows``, what was wrong (``said``) and what could not run (``absent``)."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}
        self.rows: list[dict] = []
        self.said: list[str] = []
        self.absent: list[dict] = []
        super().__init__(self._take)

    def _take(self, word: str, content: Any) -> None:
        if word == "figure":
            self.figures[content[0]] = content[1]
        else:
            {"row": self.rows, "wrong": self.said, "missing": self.absent}[word].append(content)
