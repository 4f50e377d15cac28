"""Result files as pages for people, and the README's table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import pages, readme, results, sections
from benchmarks.pages import Figure, Heading, Part
from isnet_trt import cli
from isnet_trt.errors import SettingsError

_DESCRIPTION = """Make pages from result files, and keep the README's table true.

DIR receives report.md with its figures (SVG), and report.html, which holds everything itself. A JSON of another layout
(a GPU check's) is shown as it is. With --readme nothing else is written: the table between the markers
  <!-- benchmarks:begin -->
  <!-- benchmarks:end -->
of that file is made anew from the one result given; --check only says whether it is what the result gives."""
_EPILOG = """examples:
  python -m benchmarks.report                                       # all of benchmarks/results
  python -m benchmarks.report benchmarks/results/cpu.json gpu.json --out pages
  python -m benchmarks.report benchmarks/results/cpu.json --readme README.md
  python -m benchmarks.report --readme README.md --check            # exit status 1 where the table is stale"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = cli.parser("benchmarks.report", _DESCRIPTION, _EPILOG)
    parser.add_argument("results", nargs="*", type=Path, metavar="FILE", help="result files (default: all committed)")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="DIR", help="folder (default: report)")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="only make the table between this file's markers")
    parser.add_argument("--check", action="store_true", help="with --readme: write nothing, exit 1 if it is stale")
    arguments = parser.parse_args(argv)
    if arguments.check and not arguments.readme:
        parser.error("--check belongs to --readme FILE")
    if arguments.readme:
        return _readme(arguments.readme, arguments.results, arguments.check)
    files = arguments.results or sorted(results.FOLDER.glob("*.json"))
    if not files:
        raise SettingsError(f"there is no result in {results.FOLDER}; make one with python -m benchmarks.suite")
    gaps: list[results.Record] = []
    parts = collect(files, gaps)
    write(parts, arguments.out)
    for one in gaps:
        print(f"left out: {one['what']}: {one['why']}", file=sys.stderr)
    print(f"written: {arguments.out}/report.html, report.md")
    return cli.FAILED if gaps else 0


def collect(files: Sequence[Path], gaps: list[results.Record]) -> list[Part]:
    """The parts of every file that can be read; the others go to ``gaps``.

    Raises:
        SettingsError: none can be.
    """
    parts: list[Part] = [Heading("Benchmarks", 1)]
    for file in files:
        try:
            data = results.load_json(file)
            parts += sections.parts(file.stem, data) if "schema" in data else sections.foreign(file.stem, data)
        except (SettingsError, KeyError, TypeError, ValueError) as error:
            gaps.append(results.gap(str(file), f"{type(error).__name__}: {error}"))
    if len(parts) == 1:
        raise SettingsError("no result can be shown: " + "; ".join(g["why"] for g in gaps))
    return parts


def write(parts: Sequence[Part], folder: Path) -> None:
    """``report.html``, ``report.md`` and its figures in ``folder``."""
    for part in parts:
        if isinstance(part, Figure):
            results.write_text(folder / f"{part.name}.svg", part.svg)
    results.write_text(folder / "report.md", pages.markdown(parts, "./"))
    results.write_text(folder / "report.html", pages.page(parts, "isnet_trt benchmarks"))


def _readme(page: Path, files: Sequence[Path], check: bool) -> int:
    if check:
        reason = readme.stale(page)
        print(reason or f"{page}: the table is what its result gives")
        return cli.FAILED if reason else 0
    if len(files) != 1:
        raise SettingsError("--readme takes one result file, from which the table is made")
    readme.update(page, files[0])
    print(f"{page}: the table between the markers is from {files[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
