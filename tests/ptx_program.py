"""The text of a compiled kernel taken apart: instructions, labels, parameters and register widths of one entry."""

from __future__ import annotations

import re

SHARED_SYMBOL = "global_smem"
PARAMETER_SPACE, PARAMETER_STEP = 1 << 62, 1 << 12
"""Where an emulated launch has its parameters, so far apart; their addresses are taken of tensor maps only."""
_PREFIX = {"pred": "p", "b16": "rs", "b32": "r", "b64": "rd"}
"""Type of a register -> how LLVM names those of that type."""


def operands(text: str) -> list[str]:
    """Split at commas outside brackets."""
    parts, depth, begin = [], 0, 0
    for at, character in enumerate(text):
        depth += (character in "[{") - (character in "]}")
        if character == "," and not depth:
            parts.append(text[begin:at].strip())
            begin = at + 1
    return [part for part in (*parts, text[begin:].strip()) if part]


def members(operand: str) -> list[str]:
    """The registers of a vector such as ``{%r1, %r2}``."""
    return [part.strip() for part in operand.strip("{} ").split(",")]


class Program:
    """The instructions of one entry.

    Attributes:
        parameters: type and name of each, and the bytes of an array (0: it is a scalar).
        threads: of a block.
        widths: prefix of a register's name -> bits.
        code: instructions as (opcode's parts, operands, guard, text).
        labels: name -> the instruction that follows it.
        targets: name of a list of labels, for ``brx.idx`` -> those labels.
        symbols: name of a parameter -> its address.
    """

    def __init__(self, text: str) -> None:
        begin = text.index(".entry")
        body = text.index("\n{", begin)
        header, code = text[begin:body], _without_scopes(_body(re.sub(r"//[^\n]*", "", text[body + 1 :])))
        found = re.findall(r"\.param (?:\.align \d+ )?\.(\w+)[^\n]*?(\w+)(?:\[(\d+)\])?\s*[,\n]", header)
        self.parameters = [(kind, name, int(size or 0)) for kind, name, size in found]
        self.symbols = {
            name: PARAMETER_SPACE + number * PARAMETER_STEP for number, (_, name, _) in enumerate(self.parameters)
        }
        self.threads = int(re.findall(r"\.reqntid (\d+)", header)[0])
        self.widths = {name: int(bits) for bits, name in re.findall(r"\.reg \.b(\d+)\s+%(\w+)<", code)}
        self.code: list[tuple[list[str], list[str], str, str]] = []
        self.labels: dict[str, int] = {}
        lists = r"(\$\w+):\s*\.branchtargets([^;]*);"
        self.targets = {name: [part.strip() for part in labels.split(",")] for name, labels in re.findall(lists, code)}
        for statement in re.findall(r"\$\w+:|[^;\n]+(?=;)", re.sub(lists, "", code)):
            self._add(statement.strip())

    def _add(self, statement: str) -> None:
        if statement.endswith(":"):
            self.labels[statement[:-1]] = len(self.code)
            return
        guard, opcode, rest = re.findall(r"^(?:@(!?%\w+)\s+)?([\w.:]+)\s*(.*)$", statement)[0] or ("", "", "")
        if not opcode.startswith("."):
            self.code.append((opcode.split("."), operands(rest), guard, statement))


def _body(text: str) -> str:
    """What is between the first brace of ``text`` and the one that closes it."""
    depth = 0
    for at, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if not depth:
            return text[1:at]
    raise AssertionError("an entry without an end")


def _without_scopes(code: str) -> str:
    """Blocks in braces, as inline assembly has them, with names that are unique in place of their own."""
    number = 0

    def opened(match: re.Match[str]) -> str:
        nonlocal number
        number, scope = number + 1, match[1]
        renamed = {label: f"$L_{label}_{number}" for label in re.findall(r"^\s*(\w+):", scope, re.MULTILINE)}
        for kind, names in re.findall(r"\.reg \.(\w+) ([^;<]+);", scope):
            renamed |= {name.strip().lstrip("%"): f"%{_PREFIX[kind]}_{number}" for name in names.split(",")}
        scope = re.sub(r"\.reg [^;]+;", "", scope)
        for name, unique in renamed.items():
            scope = re.sub(rf"%?\b{name}\b", lambda _, new=unique: new, scope)
        return scope

    # A scope opens at the beginning of a line; the braces of vectors stand within lines.
    return re.sub(r"^\s*\{\s*$(.*?)^\s*\}\s*$", opened, code, flags=re.MULTILINE | re.DOTALL)
