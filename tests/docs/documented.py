"""What the pages show: commands, Python code and printed output, in the order of the page."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(page.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "[!.]*/README.md", "examples/*/README.md", "training/assets/*.md")
    for page in ROOT.glob(pattern)
)
COMMANDS = ("", "bash", "console", "sh", "shell")
"""Languages of blocks that hold commands; a block without a language holds commands too."""
OUTPUTS = ("--out", "--export", "--work", "--dest", "--log-json", "-o", "-C", "-B", "--prefix")
"""Options whose value a command makes, or makes something in."""
LANGUAGES = (*COMMANDS, "python", "text", "yaml", "json", "c", "dockerfile", "toml", "ini", "diff", "html")
ELLIPSIS = "…"


class Block(NamedTuple):
    """A code block: what stands between it and the block before, its language and its text."""

    before: str
    language: str
    text: str


class Command(NamedTuple):
    """A shell command without its comment, and what the page prints below it."""

    text: str
    output: str = ""

    @property
    def words(self) -> list[str]:
        """Arguments, with the values of ``NAME=value`` on their own as well."""
        words = shlex.split(re.sub(r"[<>|;&]+", " ", self.text), comments=True)
        return [part.rstrip("/") for word in words for part in (word, *word.split("=", 1)[1:])]

    @property
    def outputs(self) -> set[str]:
        """Files and folders that it makes, as its options name them."""
        return {value for option, value in itertools.pairwise(self.words) if option in OUTPUTS}


def blocks(text: str) -> Iterator[Block]:
    """Fenced blocks, and indented ones below an empty line; the latter have no language."""
    pattern = re.compile(
        r"^ *```(?P<language>[^\n`]*)\n(?P<fenced>.*?)^ *```$|(?<=\n\n)(?P<indented>(?: {4}\S[^\n]*\n| {4,}[^\n]*\n)+)",
        re.MULTILINE | re.DOTALL,
    )
    end = 0
    for match in pattern.finditer(text):
        content = match["fenced"] if match["indented"] is None else re.sub("^ {4}", "", match["indented"], flags=re.M)
        yield Block(text[end : match.start()], (match["language"] or "").strip(), content)
        end = match.end()


def commands(text: str) -> list[Command]:
    """The commands of a page.

    A text block is the output of the command that the prose before it names, as in "`make demo` prints"; without prose
    it is that of the command above it.
    """
    result: list[Command] = []
    for block in blocks(text):
        if block.language in COMMANDS:
            result += _lines(block.text)
        elif block.language == "text":
            last = [*range(len(result))][-1:] if not block.before.strip() else []
            named = [i for i, command in enumerate(result) if f"`{command.text}` prints" in block.before]
            for i in (named or last)[-1:]:
                result[i] = result[i]._replace(output=block.text)
    return result


def _lines(text: str) -> Iterator[Command]:
    """Each line is a command; a backslash continues it; below a ``$`` prompt other lines are output."""
    joined = re.sub(r"\\\n\s*", "", text)
    prompted = any(line.startswith("$ ") for line in joined.splitlines())
    current: Command | None = None
    for line in joined.splitlines():
        if prompted and not line.startswith("$ "):
            current = current and current._replace(output=f"{current.output}{line}\n")
            continue
        if current:
            yield current
        stripped = re.sub(r"(^|\s)#.*$", "", line.removeprefix("$ ")).strip()
        current = Command(re.sub(r"\s+", " ", stripped)) if stripped else None
    if current:
        yield current


def python(text: str) -> list[str]:
    """The Python blocks of a page."""
    return [block.text for block in blocks(text) if block.language == "python"]


def skeleton(text: str) -> list[str]:
    """What is stable of printed text: its words by line, without parentheses, numbers, strings and dashes as ``#``."""
    plain = re.sub(r"\([^()\n]*\)", "", text)
    plain = re.sub(r"'[^'\n]*'", "#", plain)
    words = [[re.sub(r"^([-−]?\S*\d\S*|–)$", "#", word) for word in line.split()] for line in plain.splitlines()]
    return [" ".join(line) for line in words if line]


def missing_lines(shown: str, printed: str) -> list[str]:
    """Lines that the page shows and the command did not print in this order; a line of ``…`` stands for any."""
    left, result = skeleton(printed), []
    for line in skeleton(shown):
        if line == ELLIPSIS:
            continue
        if line in left:
            left = left[left.index(line) + 1 :]
        else:
            result.append(line)
    return result
