"""A command of sub-commands. The module of a sub-command is imported when it is chosen, not before."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from isnet_trt import cli
from isnet_trt.errors import PackageMissing, needs

SHELLS = ("bash", "zsh")
PATHS = ("FILE", "DIR", "PATH", "BUNDLE", "IMAGE", "MODEL", "OTHER", "CKPT", "ONE", "FILE.onnx")
"""Placeholders of arguments that a shell completes as paths."""


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        help: what it does, in a line.
        module: module of its functions ``argument_parser()`` and ``main(argv)``.
        names: modules that start it after ``python -m``.
        extra: what installs the packages that importing the module needs beyond the runtime's.
    """

    help: str
    module: str
    names: tuple[str, ...]
    extra: str = ""

    def load(self) -> Any:
        """Import the module; PackageMissing if a package that it imports is not installed."""
        with needs(self.names[0], *filter(None, [self.extra])):
            return importlib.import_module(self.module)

    def run(self, argv: Sequence[str]) -> int:
        """Run it and return its exit status; PackageMissing also for a package that it imports only then."""
        main = self.load().main
        with needs(self.names[0], self.extra) if self.extra else contextlib.nullcontext():
            return int(main(argv))


@dataclass(frozen=True)
class Dispatcher:
    """``prog COMMAND …``; with a ``version`` it has the options ``--version`` and ``--print-completion`` too.

    Shells complete the console script ``script``, whichever way printed its completion.
    """

    prog: str
    description: str
    commands: Mapping[str, Command]
    version: str = ""
    script: str = ""

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run a sub-command with the arguments that follow its name; return its exit status."""
        parser = self.names_parser()
        arguments = parser.parse_args(argv)
        if self.version and arguments.print_completion:
            print(replace(self, prog=self.script)._completion(arguments.print_completion))
            return 0
        if arguments.command is None:
            parser.print_help(sys.stderr)
            return cli.ERROR
        with cli.naming(self._names()):
            return self.commands[arguments.command].run(arguments.rest)

    def names_parser(self) -> cli.Parser:
        """A parser that finds the sub-command and leaves its arguments to it; it imports nothing."""
        return self._parser(lambda prog, **_: _Rest(prog=prog, add_help=False))

    def parser(self) -> cli.Parser:
        """A parser with the options of all sub-commands that can be imported here."""
        with cli.naming(self._names()):
            return self._parser(self._loaded)

    def _names(self) -> dict[str, str]:
        """Module after ``python -m`` -> sub-command."""
        return {name: f"{self.prog} {sub}" for sub, command in self.commands.items() for name in command.names}

    def _loaded(self, prog: str, **_: Any) -> argparse.ArgumentParser:
        command = self.commands[prog.removeprefix(f"{self.prog} ")]
        try:
            return command.load().argument_parser()
        except PackageMissing:
            return argparse.ArgumentParser(prog=prog)

    def _parser(self, parser_class: Callable[..., argparse.ArgumentParser]) -> cli.Parser:
        """The parser of the names; ``parser_class(prog=…)`` gives that of a sub-command."""
        parser = cli.Parser(prog=self.prog, description=self.description)
        if self.version:
            parser.add_argument("--version", action="version", version=f"{self.prog} {self.version}")
            text = "print a script that completes commands and options (needs shtab)"
            parser.add_argument("--print-completion", choices=SHELLS, help=text)
        options: dict[str, Any] = {"parser_class": parser_class}
        sub = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", prog=self.prog, **options)
        for name, command in self.commands.items():
            sub.add_parser(name, help=command.help)
        return parser

    def _completion(self, shell: str) -> str:
        with needs("--print-completion", "completion"):
            import shtab
        parser = self.parser()
        _complete_paths(parser, shtab.FILE)
        return shtab.complete(parser, shell)


class _Rest(argparse.ArgumentParser):
    """Takes all arguments as they are."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return argparse.Namespace(rest=list(args or ())), []


def _complete_paths(parser: argparse.ArgumentParser, completion: Any) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                _complete_paths(each, completion)
        elif action.metavar in PATHS:
            action.complete = completion  # type: ignore[attr-defined]  # read by shtab
