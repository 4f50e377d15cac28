"""What our sources use of TensorRT's Python API, read from the sources themselves: names, calls and overridden methods.

`used_names` gives the paths below the library's module (``BuilderFlag.TF32``), `used_members` the attributes and
calls of its objects, whose classes follow from the names of variables, and `overridden` the methods of its interfaces.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED = (
    "isnet_trt/engines/tensorrt_api.py",
    "isnet_trt/engines/tensorrt_family.py",
    "isnet_trt/engines/tensorrt_engine.py",
    "isnet_trt/cuda/plugins.py",
    "export/engines/tensorrt_family.py",
    "export/engines/profiles.py",
    "tests/gpu/engines.py",
)
OWN = {"tensorrt": ("export/engines/tensorrt.py",), "tensorrt_rtx": ("export/engines/tensorrt_rtx.py",)}
"""Files that only one of the two libraries runs."""
MODULES = {"module", "library", "_library"}
"""Variables and attributes that hold the library's module."""
OURS = {"library": {"tensorrt_family.py", "tensorrt.py", "tensorrt_rtx.py"}}
"""Files where ``self.library`` is our own description of the library."""
CLASSES = {
    "builder": "Builder",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "registry": "IPluginRegistry",
}
"""Variable, with or without an underscore, -> class of what it holds."""
CLASSES_IN = {("_context_options", "config"): "IRuntimeConfig"}
"""The same in one function, where it differs."""
RTX_ONLY = {
    *("IRuntimeConfig", "ICudaEngine.create_runtime_config", "EngineInvalidityDiagnostics", "ComputeCapability"),
    *("IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"),
}
"""Behind a check for a class or method that only TensorRT-RTX has, or for its targets."""


@dataclass(frozen=True)
class Member:
    """A use of ``owner.name``: read, assigned, or called with so many positional arguments and these keywords."""

    owner: str
    name: str
    stored: bool = False
    called: bool = False
    arguments: int | None = None
    keywords: tuple[str, ...] = ()


def files(kind: str) -> list[Path]:
    """The files that the library named ``kind`` runs."""
    return [ROOT / name for name in (*SHARED, *OWN[kind])]


def _dotted(node: ast.expr) -> list[str]:
    """``self._library.A.B`` as a list; empty where the expression is no chain of names."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else []


def _below_module(path: Path, node: ast.expr) -> list[str]:
    """The names below the library's module in a chain of attributes; empty where it is another chain."""
    names = _dotted(node)
    own = names[:1] == ["self"]
    names = names[1:] if own else names
    if not names or names[0] not in MODULES or (own and path.name in OURS.get(names[0], ())):
        return []
    return names[1:]


def _aliases(path: Path, function: ast.AST) -> dict[str, list[str]]:
    """Variables of a function or file that hold something of the module, such as ``mode = library.TensorIOMode``."""
    found = {}
    for node in ast.walk(function):
        for target in node.targets if isinstance(node, ast.Assign) else ():
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            found |= {
                variable.id: names
                for variable, value in pairs
                if isinstance(variable, ast.Name) and (names := _below_module(path, value))
            }
    return found


def _uses(kind: str) -> Iterator[tuple[Path, str, ast.Attribute, ast.Call | None]]:
    """Every attribute in the files, with the function around it and the call of it."""
    for path in files(kind):
        tree = ast.parse(path.read_text("utf-8"))
        calls = {id(node.func): node for node in map(_called, ast.walk(tree)) if node is not None}
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        names = {id(inner): function.name for function in functions for inner in ast.walk(function)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                yield path, names.get(id(node), ""), node, calls.get(id(node))


def _called(node: ast.AST) -> ast.Call | None:
    """A call; ``create(label, logger, factory, *arguments)`` is one of ``factory``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "create":
        return ast.Call(node.args[2], node.args[3:], [])
    return node if isinstance(node, ast.Call) else None


def used_names(kind: str) -> set[str]:
    """Paths below the module; those that `getattr` looks up with a default may be missing and are not among them."""
    names = {".".join(names) for path, _, node, _ in _uses(kind) if (names := _below_module(path, node))}
    for path in files(kind):
        tree = ast.parse(path.read_text("utf-8"))
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            aliases = _aliases(path, function)
            for node in ast.walk(function):
                variable, *rest = (_dotted(node) if isinstance(node, ast.Attribute) else []) or [""]
                if variable in aliases:
                    names.add(".".join([*aliases[variable], *rest]))
    return names


def used_members(kind: str) -> set[Member]:
    """Attributes and calls of the library's objects, and calls of the module's functions and classes."""
    members = set()
    for path, function, node, call in _uses(kind):
        owner, below = _owner(function, node.value), _below_module(path, node)
        if owner or (call and len(below) == 1):
            members.add(_member(owner, node, call))
    return members


def _owner(function: str, node: ast.expr) -> str:
    names = _dotted(node)
    variable = names[-1].lstrip("_") if len(names) == 1 or (len(names) == 2 and names[0] == "self") else ""
    return CLASSES_IN.get((function, variable)) or CLASSES.get(variable, "")


def _member(owner: str, node: ast.Attribute, call: ast.Call | None) -> Member:
    stored = isinstance(node.ctx, ast.Store)
    if call is None:
        return Member(owner, node.attr, stored)
    starred = any(isinstance(argument, ast.Starred) for argument in call.args)
    keywords = tuple(keyword.arg or "" for keyword in call.keywords)
    return Member(owner, node.attr, stored, True, None if starred else len(call.args), keywords)


def overridden(kind: str) -> dict[str, dict[str, int]]:
    """Interface -> public methods that our classes override -> their parameters besides self."""
    methods: dict[str, dict[str, int]] = {}
    for path in files(kind):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            for base in node.bases if isinstance(node, ast.ClassDef) else ():
                if names := _below_module(path, base):
                    functions = [item for item in node.body if isinstance(item, ast.FunctionDef)]
                    public = [item for item in functions if not item.name.startswith("_")]
                    methods[".".join(names)] = {item.name: len(item.args.args) - 1 for item in public}
    return methods
