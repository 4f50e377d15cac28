"""``python -m benchmarks.gpu_check``: everything that only a GPU can show."""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import results
from benchmarks.gpu_check import catalogue, pages, runner, section
from benchmarks.gpu_check.check import Check, Row, Setup
from isnet_trt import cli
from isnet_trt.cuda.gpu import find_gpu

_DESCRIPTION = """Ask a GPU machine, which needs no network, everything that only a GPU can show.

Kernels against their references, plugins, engines, the runtime against the host's, memory, error paths, then speed
beside its floor. What this machine lacks is named with the reason; a check that fails, dies or hangs stops no other.
The result is written after every check, so that a run that is cut off is worth what it has done; --resume goes on.
Without a GPU, what needs none is really checked: kernels compile, engines are built ahead of time, plans are made."""
_EPILOG = """examples:
  python -m benchmarks.gpu_check                                 # everything, to benchmarks/results/<gpu>.json and .md
  python -m benchmarks.gpu_check --quick --minutes 8             # the most valuable answers first, fewer sizes
  python -m benchmarks.gpu_check --only kernels rtx              # checks whose names hold one of the words
  python -m benchmarks.gpu_check --resume --out benchmarks/results/nvidia-h100.json
  python -m benchmarks.gpu_check --list

exit status: 0 all passed, 1 a check failed, 2 wrong arguments, 3 nothing failed but something could not run"""


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("benchmarks.gpu_check", _DESCRIPTION, _EPILOG)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="JSON to write, and .md beside it (default: see below)"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="only checks whose names hold a WORD")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    parser.add_argument("--bundle", nargs="+", type=Path, default=[], metavar="DIR", help="bundles to check as well")
    parser.add_argument("--minutes", type=float, metavar="N", help="stop after so many; what is left is listed")
    parser.add_argument("--resume", action="store_true", help="keep what passed or failed in FILE, run the rest")
    parser.add_argument("--seed", type=int, help="of all random inputs (default: a new one every time)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep compiled kernels and bundles there")
    parser.add_argument("--list", action="store_true", help="list the checks and what each needs")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    every = catalogue.checks()
    checks = runner.chosen(every, arguments.only, arguments.quick)
    if arguments.list:
        print("\n".join(f"{c.name:28} {c.title}; needs {', '.join(c.needs) or 'nothing'}" for c in checks))
        return 0
    with tempfile.TemporaryDirectory(prefix="isnet_trt_gpu_check") as temporary:
        folder = arguments.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        seed = random.SystemRandom().randrange(2**31) if arguments.seed is None else arguments.seed
        setup = Setup(folder.resolve(), [b.resolve() for b in arguments.bundle], arguments.quick, seed)
        return _run(arguments, every, checks, setup)


def _run(arguments: argparse.Namespace, every: Sequence[Check], checks: Sequence[Check], setup: Setup) -> int:
    out = arguments.out or _default()
    before = runner.settled(out) if out and (arguments.resume or arguments.only) else []
    names = {check.name for check in checks}
    kept = [row for row in before if row["case"] not in names]
    done = [row for row in before if row["case"] in names] if arguments.resume else []
    for row in done:
        print(f"kept          {row['case']}: {row['status']}")

    about = results.result((), ())

    def keep(rows: list[Row]) -> None:
        if out:
            write(out, about, order(every, [*kept, *rows]))

    plan = runner.Plan(catalogue.MODULES, checks, done, kept)
    rows = runner.run(
        plan, setup, runner.Clock(arguments.minutes), keep, lambda row: print(section.line(row), flush=True)
    )
    keep(rows)
    _report(rows, out)
    return runner.status(rows)


def _report(rows: Sequence[Row], out: Path | None) -> None:
    """The end of the run, for people: what failed, and what could not run, by reason."""
    print(f"\n{section.counted(rows)}")
    for row in rows:
        if row["status"] == "failed":
            print(f"  failed: {row['case']}: {row['why']}")
    lacking: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] == "could not run":
            lacking.setdefault(row["why"], []).append(row["case"])
        for one in row["missing"]:
            lacking.setdefault(one["why"], []).append(f"{row['case']} ({one['what']})")
    for why, names in lacking.items():
        print(f"  could not run: {why}:\n    {', '.join(names)}")
    if out:
        print(f"written: {out}, {out.with_suffix('.md').name}")


def order(every: Sequence[Check], rows: Sequence[Row]) -> list[Row]:
    """Records in the order of the checks."""
    ranks = {check.name: number for number, check in enumerate(sorted(every, key=lambda c: c.rank))}
    return sorted(rows, key=lambda row: ranks.get(row["case"], len(ranks)))


def write(out: Path, about: results.Result, rows: Sequence[Row]) -> None:
    """The result as JSON, and as Markdown beside it; ``about`` is a result with date and machine."""
    gaps = [results.gap(row["case"], row["why"]) for row in rows if row["status"] == "could not run"]
    gaps += [results.gap(f"{row['case']}: {m['what']}", m["why"]) for row in rows for m in row["missing"]]
    data = {**about, "records": list(rows), "gaps": gaps}
    results.write(out, data)
    results.write_text(out.with_suffix(".md"), pages.markdown(section.page(out.stem, data)))


def _default() -> Path | None:
    """``benchmarks/results/<gpu>.json``; nowhere without a GPU."""
    gpu = find_gpu()
    return results.FOLDER / f"{re.sub('[^a-z0-9]+', '-', gpu.name.lower()).strip('-')}.json" if gpu else None


if __name__ == "__main__":
    sys.exit(cli.run(main))
