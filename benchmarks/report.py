"""Result files as pages for people, and the tables that pages of the documentation hold."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import results, sections
from benchmarks.results import Record, Result
from isnet_trt import cli
from isnet_trt.errors import SettingsError

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
_SOURCE = re.compile(r"<!-- from (\S+) -->")
_DESCRIPTION = """Make pages from result files, and keep the tables of the documentation true.

DIR receives report.md with its figures (SVG), and report.html, which holds everything itself. A JSON of another layout
is shown as it is. With --readme nothing else is written: the table between the markers
  <!-- benchmarks:begin -->
  <!-- benchmarks:end -->
of that file is made anew from the one result given, and with --gpu that of all GPU results; --check only says whether
it is what the results give."""
_EPILOG = """examples:
  python -m benchmarks.report                                       # all of benchmarks/results
  python -m benchmarks.report benchmarks/results/cpu.json gpu.json --out pages
  python -m benchmarks.report benchmarks/results/cpu-epyc-2-cores.json --readme benchmarks/results/README.md
  python -m benchmarks.report --readme benchmarks/results/README.md --check   # exit status 1 where it is stale
  python -m benchmarks.report --gpu docs/gpu.md                     # what has run on which GPU"""
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .6rem; text-align: left; vertical-align: top; }
figure { margin: 1.5rem 0; } figure svg { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: 13px; }
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = cli.parser("benchmarks.report", _DESCRIPTION, _EPILOG)
    parser.add_argument("results", nargs="*", type=Path, metavar="FILE", help="result files (default: all committed)")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="DIR", help="folder (default: report)")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="only make the table between this file's markers")
    parser.add_argument("--gpu", type=Path, metavar="FILE", help="only make the table of GPU tests between the markers")
    parser.add_argument("--check", action="store_true", help="with --readme or --gpu: write nothing, exit 1 if stale")
    arguments = parser.parse_args(argv)
    if arguments.check and not (arguments.readme or arguments.gpu):
        parser.error("--check belongs to --readme FILE or --gpu FILE")
    files = arguments.results or sorted(results.FOLDER.glob("*.json"))
    if arguments.gpu:
        table = f"\n{sections.gpu_table([results.read(file) for file in files])}\n"
        return _fill(arguments.gpu, table, arguments.check, f"--gpu {arguments.gpu}")
    if arguments.readme:
        return _readme(arguments.readme, arguments.results, arguments.check)
    if not files:
        raise SettingsError(f"there is no result in {results.FOLDER}; make one with python -m benchmarks.suite")
    report = Report()
    for file in files:
        report.add(file)
    report.write(arguments.out)
    for gap in report.gaps:
        print(f"left out: {gap['what']}: {gap['why']}", file=sys.stderr)
    print(f"written: {arguments.out}/report.html, report.md")
    return cli.FAILED if report.gaps else 0


class Report:
    """The Markdown paragraphs of the results added so far, and their figures (file stem -> SVG text)."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.figures: dict[str, str] = {}
        self.gaps: list[Record] = []

    def add(self, file: Path) -> None:
        """Add a result file; one that cannot be shown goes to ``gaps``."""
        try:
            data = results.load_json(file)
            parts = self._result(file.stem, data) if "schema" in data else sections.foreign(data)
            self.parts += [f"## {file.stem}", *filter(None, parts)]
        except (SettingsError, KeyError, TypeError, ValueError) as error:
            self.gaps.append(results.gap(str(file), f"{type(error).__name__}: {error}"))

    def _result(self, name: str, data: Result) -> Iterator[str]:
        from benchmarks import plots

        yield from sections.machine(data)
        if any(short := list(sections.summary(data))):
            yield from ("## In short", *short)
        for kind in dict.fromkeys(record["kind"] for record in data["records"]):
            title = sections.SECTIONS[kind][0] if kind in sections.SECTIONS else f"Checks ({kind.replace('_', ' ')})"
            yield f"## {title}"
            records = results.of_kind(data, kind)
            for members in [[record] for record in records] if kind in plots.FIGURES else [records]:
                yield from sections.section(kind, members)
                for record in members if kind in plots.FIGURES else ():
                    figure, caption, draw = plots.FIGURES[kind]
                    stem = "-".join((name, record.get("name", ""), record["case"], figure))
                    if svg := draw(record):
                        yield self._figure(stem, svg, f"{record['case']}: {caption}")
        for number, (record, svg) in enumerate(plots.accuracy_against_speed(data), 1):
            yield self._figure(f"{name}-accuracy-speed-{number}", svg, f"{record['case']}: accuracy against speed")
        if data["gaps"]:
            yield from ("## Not measured", sections.table(data["gaps"]))

    def _figure(self, name: str, svg: str, caption: str) -> str:
        stem = re.sub(r"[^\w.]+", "-", name)
        self.figures[stem] = svg
        return f"![{caption}](./{stem}.svg)"

    def write(self, folder: Path) -> None:
        """Write ``report.html``, ``report.md`` and the figures.

        Raises:
            SettingsError: there is nothing to show, or a file cannot be written.
        """
        if not self.parts:
            raise SettingsError("no result can be shown: " + "; ".join(gap["why"] for gap in self.gaps))
        text = "\n\n".join(["# Benchmarks", *self.parts]) + "\n"
        for stem, svg in self.figures.items():
            results.write_text(folder / f"{stem}.svg", svg)
        results.write_text(folder / "report.md", text)
        results.write_text(folder / "report.html", page(text, self.figures))


def page(text: str, figures: dict[str, str]) -> str:
    """Markdown with figures as one HTML file that needs nothing else."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)

    def inline(image: re.Match[str]) -> str:
        return f"<figure>{figures[image[1]]}<figcaption>{image[2]}</figcaption></figure>"

    body = re.sub(r'<p><img src="\./(.+?)\.svg" alt="(.*?)" /></p>', inline, body)
    head = f'<meta charset="utf-8"><title>isnet_trt benchmarks</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}</body></html>\n'


def _readme(page: Path, files: Sequence[Path], check: bool) -> int:
    """Make the table of the bundles from a result, or only say whether it is what the result named there gives."""
    how = f"FILE --readme {page}"
    if check:
        source = _SOURCE.search(_split(page)[1])
        if source is None:
            print(f"{page}: nothing is between the markers; python -m benchmarks.report {how}")
            return cli.FAILED
        files = [page.parent / source[1]]
    if len(files) != 1:
        raise SettingsError("--readme takes one result file, from which the table is made")
    (file,), folder = files, page.resolve().parent
    if not file.resolve().is_relative_to(folder):
        raise SettingsError(f"{file} lies outside the folder of {page}: a table must come from a committed result")
    try:
        data, name = results.read(file), file.resolve().relative_to(folder).as_posix()
        machine = f"{data['machine']['processor']}, {data['machine']['cores']} cores in use"
        about = f"{machine}, {results.dates(data)}; `{name}`."
        table = "\n\n".join(filter(None, (f"\n<!-- from {name} -->\n{about}", *sections.summary(data)))) + "\n"
    except SettingsError as error:
        if not check:
            raise
        table = str(error)
    return _fill(page, table, check, how)


def _fill(page: Path, table: str, check: bool, how: str) -> int:
    """Put ``table`` between the markers of a page, or with ``check`` only say whether it stands there."""
    before, current, after = _split(page)
    if check and current != table:
        print(f"{page}: the table is not what the results give; python -m benchmarks.report {how}")
        return cli.FAILED
    if not check:
        results.write_text(page, f"{before}{BEGIN}{table}{END}{after}")
    print(f"{page}: the table is what the results give")
    return 0


def _split(page: Path) -> tuple[str, str, str]:
    """The text before, between and after the markers."""
    try:
        before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    except OSError as error:
        raise SettingsError(f"{page} cannot be read: {error.strerror}") from None
    between, end, after = rest.partition(END)
    if not begin or not end:
        raise SettingsError(f"{page} has no markers; add the lines {BEGIN} and {END} where the table shall be")
    return before, between, after


if __name__ == "__main__":
    sys.exit(cli.run(main))
