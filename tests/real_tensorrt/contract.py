"""Compares what our sources use with a real library: ``python contract.py tensorrt``; prints JSON.

Signatures are those in the documentation strings that pybind11 writes.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from typing import Any

from isnet_trt.cuda.plugins import plugin_class
from tests.real_tensorrt.usage import RTX_ONLY, Member, overridden, used_members, used_names

_EMPTY = object()


def find(module: Any, path: str) -> Any:
    """What a path such as ``BuilderFlag.TF32`` names; `_EMPTY` where there is no such thing."""
    value = module
    for name in path.split(".") if path else ():
        value = getattr(value, name, _EMPTY)
    return value


def signatures(function: Any, name: str) -> list[tuple[int, int, set[str]]]:
    """Least and most arguments and their names, without self, of every overload in the documentation string."""
    found = []
    for text in re.findall(rf"^(?:\d+\. )?{name}\((.*)\)(?: ->|$)", function.__doc__ or "", re.MULTILINE):
        parameters = [part for part in _split(text) if not part.startswith("self")]
        if not any(part.startswith("*") for part in parameters):
            required = sum("=" not in part for part in parameters)
            found.append((required, len(parameters), {part.split(":")[0] for part in parameters}))
    return found


def _split(text: str) -> list[str]:
    """Parameters between commas that are in no brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{<") - (character in ")]}>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def problem(module: Any, use: Member) -> str:
    """What is wrong with one use; empty if nothing is."""
    owner = find(module, use.owner)
    value = getattr(owner, use.name, _EMPTY)
    if _EMPTY in (owner, value):
        return "missing"
    if use.stored:
        return "" if getattr(value, "fset", None) else "cannot be assigned"
    if not use.called:
        return "is a method, not a property" if use.owner and callable(value) else ""
    if not callable(value):
        return "cannot be called"
    function, name = (value.__init__, "__init__") if isinstance(value, type) else (value, use.name)
    fits = [
        least <= use.arguments + len(use.keywords) <= most and names >= set(use.keywords)
        for least, most, names in signatures(function, name)
        if use.arguments is not None
    ]
    given = f"{use.arguments} arguments and the keywords {use.keywords}"
    return "" if any(fits) or not fits else f"does not take {given}"


def interface_problems(module: Any, kind: str) -> dict[str, str]:
    """Methods that our classes override and no interface has, or with another number of parameters."""
    problems = {}
    for interface, methods in overridden(kind).items():
        for name, count in methods.items():
            method = getattr(find(module, interface), name, None)
            known = signatures(method, name) if method is not None else None
            if method is None or (known and all(count != most for _, most, _ in known)):
                problems[f"{interface}.{name}"] = "missing" if method is None else f"takes {known}"
    plugin = plugin_class(module)
    bases = [base for base in plugin.__mro__ if base.__module__.startswith(kind)]
    for name in ("clone", "attach_to_context", "get_capability_interface", *_callbacks(plugin)):
        if not any(hasattr(base, name) for base in bases):
            problems[f"plugin.{name}"] = "missing"
    return problems


def _callbacks(plugin: Any) -> list[str]:
    """The public methods of our plugin's class."""
    return [name for name, value in vars(plugin.__mro__[1]).items() if callable(value) and not name.startswith("_")]


def main(kind: str) -> dict[str, Any]:
    module = importlib.import_module(kind)
    names, members = used_names(kind), used_members(kind)
    if kind == "tensorrt":
        members = {use for use in members if not {use.owner, f"{use.owner}.{use.name}"} & RTX_ONLY}
        names = {name for name in names if name.split(".")[0] not in RTX_ONLY}
    problems = {name: "missing" for name in names if find(module, name) is _EMPTY}
    problems |= {f"{use.owner}.{use.name}": text for use in members if (text := problem(module, use))}
    checked = sorted(names | {f"{use.owner}.{use.name}".lstrip(".") for use in members})
    return {
        "version": module.__version__,
        "checked": checked,
        "problems": problems | interface_problems(module, kind),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
