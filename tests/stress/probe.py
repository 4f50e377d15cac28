"""What all probes share: the command line, the folder of the checkout on the path, and the figures at the end."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[1:1] = [str(TESTS.parent), str(TESTS)]

from isnet_trt.files import write_file  # noqa: E402

FIGURES = Path(__file__).with_name("figures.json")
"""Figures of the long forms, from which `tables.py` makes docs/reliability.md."""
START = time.monotonic()
_SHOWN = 500
_FACTS = ("processor", "cores", "memory_gb", "load_before", "system")
_PACKAGES = ("torch", "onnxruntime", "numpy", "opencv-python")


def parser(description: str | None, cases: int, unit: str = "cases") -> argparse.ArgumentParser:
    """The options of every probe; ``cases`` are those of the long form."""
    epilog = (
        "Case N follows from its number: --first N --cases 1 repeats it. Exit status: 0, or 1 if there are findings."
    )
    own = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = own.add_argument
    add("--cases", type=int, default=cases, metavar="N", help=f"number of {unit} (default: {cases})")
    add("--first", type=int, default=0, metavar="N", help="number of the first case (default: 0)")
    add("--keep", type=Path, default=Path("findings"), metavar="DIR", help="folder for what led to a finding")
    add("--json", type=Path, metavar="FILE", help=f"file whose entry of this probe gets the figures ({FIGURES.name})")
    return own


def finish(arguments: argparse.Namespace, figures: Mapping[str, Any], findings: list[str]) -> int:
    """Print the figures, write them to ``--json``, and return the exit status."""
    seconds = round(time.monotonic() - START)
    for name, figure in figures.items():
        print(f"{name:<40}{figure:>14}")
    print(f"{len(findings)} findings in {seconds} s")
    if arguments.json:
        _record(arguments.json, {"seconds": seconds, "findings": len(findings), "figures": dict(figures)})
    return int(bool(findings))


def show(finding: str) -> None:
    """Print a finding at once: a long run may be ended before its table."""
    print(finding[:_SHOWN], flush=True)


def _record(path: Path, entry: dict[str, Any]) -> None:
    """Put the entry of the running program into a file of figures, with date, machine, versions and command."""
    from benchmarks import machine

    facts = machine.describe()
    about = {name: facts[name] for name in _FACTS}
    about["versions"] = {name: facts["versions"][name] for name in _PACKAGES if name in facts["versions"]}
    program = Path(sys.argv[0]).name
    entries = json.loads(path.read_text("utf-8")) if path.exists() else {}
    date = datetime.now(timezone.utc).date().isoformat()
    entries[program] = {"command": _command(), "date": date, **entry, "machine": about}
    write_file(path, (json.dumps(dict(sorted(entries.items())), indent=1) + "\n").encode())


def _command() -> str:
    """The command line, without the options that say where to write."""
    words = list(sys.argv[1:])
    for option in ("--json", "--keep"):
        if option in words:
            position = words.index(option)
            del words[position : position + 2]
    return shlex.join(["python", f"tests/stress/{Path(sys.argv[0]).name}", *words])
