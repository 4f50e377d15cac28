"""The table of docs/reliability.md, from the figures that the probes wrote with ``--json``.

python tests/stress/tables.py            # rewrites the table in the page
python tests/stress/tables.py --check    # exit status 1 if the page holds another table
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import probe

PAGE = probe.TESTS.parent / "docs" / "reliability.md"
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->\n"


def table(entries: dict[str, Any]) -> str:
    """One row for each probe, and what they ran on."""
    lines = ["| command | findings | figures | seconds | date |", "|---|---:|---|---:|---|"]
    for entry in entries.values():
        figures = "; ".join(f"{name} {figure:,}" for name, figure in entry["figures"].items())
        cells = (f"`{entry['command']}`", entry["findings"], figures, f"{entry['seconds']:,}", entry["date"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    machines = dict.fromkeys(_machine(entry["machine"]) for entry in entries.values())
    return "\n".join([*lines, "", *machines]) + "\n"


def _machine(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return f"Measured on {facts['processor']}, {facts['memory_gb']} GB, {facts['system']}; {versions}."


def main() -> int:
    """Rewrite or check the page; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare")
    arguments = parser.parse_args()
    page = PAGE.read_text("utf-8")
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    new = f"{before}{BEGIN}{table(json.loads(probe.FIGURES.read_text('utf-8')))}{END}{after}"
    if not arguments.check:
        PAGE.write_text(new, "utf-8")
    elif new != page:
        print(f"{PAGE} holds other figures than {probe.FIGURES}: run python tests/stress/tables.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
