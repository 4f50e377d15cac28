"""Result files as pages for people, and the tables that pages of the documentation hold."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import cards, results, sections
from benchmarks.results import Record, Result
from isnet_trt import cli, markdown, pages
from isnet_trt.errors import SettingsError

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
_SOURCE = re.compile(r"<!-- from (\S+) -->")
_DESCRIPTION = """Make pages from result files, and keep the tables of the documentation true.

DIR receives report.md with its figures (SVG), and report.html, which holds everything itself; from results of GPUs also
cards.md and cards.html, which put the cards side by side. A JSON of another layout is shown as it is. With --readme
nothing else is written: the table between the markers
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
hr { border: 0; border-top: 3px solid #567; margin: 3rem 0 0; } hr + h2 { font-size: 1.8rem; border: 0; }
figure svg { max-width: 100%; height: auto; }
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = cli.parser("benchmarks.report", _DESCRIPTION, _EPILOG)
    parser.add_argument("results", nargs="*", type=Path, metavar="FILE", help="result files (default: all committed)")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="DIR", help="folder (default: report)")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="only make the table between this file's markers")
    parser.add_argument("--gpu", type=Path, metavar="FILE", help="only make the tables of GPUs between the markers")
    parser.add_argument("--check", action="store_true", help="with --readme or --gpu: write nothing, exit 1 if stale")
    arguments = parser.parse_args(argv)
    if arguments.check and not (arguments.readme or arguments.gpu):
        parser.error("--check belongs to --readme FILE or --gpu FILE")
    files = arguments.results or sorted(results.FOLDER.glob("*.json"))
    if arguments.gpu:
        data = [results.read(file) for file in files]
        table = "\n".join(["", cards.gpu_table(data), "", "\n\n".join(["### Times", *cards.times(data)]), ""])
        return _fill(arguments.gpu, table, arguments.check, f"--gpu {arguments.gpu}")
    if arguments.readme:
        return _readme(arguments.readme, arguments.results, arguments.check)
    if not files:
        raise SettingsError(f"there is no result in {results.FOLDER}; make one with python -m benchmarks.suite")
    report = Report()
    for file in files:
        report.add(file)
    written = report.write(arguments.out)
    for gap in report.gaps:
        print(f"left out: {gap['what']}: {gap['why']}", file=sys.stderr)
    print(f"written: {arguments.out}/{', '.join(written)}")
    return cli.FAILED if report.gaps else 0


class Report:
    """The Markdown paragraphs of the results added so far, and their figures (file stem -> SVG text)."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.names: list[str] = []
        self.figures: dict[str, str] = {}
        self.gaps: list[Record] = []
        self.with_gpu: list[Result] = []

    def add(self, file: Path) -> None:
        """Add a result file; one that cannot be shown goes to ``gaps``."""
        try:
            data = results.load_json(file)
            parts = self._result(file.stem, data) if "schema" in data else sections.foreign(data)
            self.parts += ["---", f"## {file.stem}", *filter(None, parts)]
            self.names.append(file.stem)
            if "schema" in data and cards.card(data):
                self.with_gpu.append(data)
        except (SettingsError, KeyError, TypeError, ValueError) as error:
            self.gaps.append(results.gap(str(file), f"{type(error).__name__}: {error}"))

    def _result(self, name: str, data: Result) -> Iterator[str]:
        """Results first: in short, kind by kind, what is noisy or missing; then the machine."""
        yield sections.provenance(data)
        short = [*sections.summary(data, with_merges=False), *(cards.times([data]) if cards.card(data) else ())]
        if any(short):
            yield from ("## In short", *short)
        # Warnings of noise stand in one place, not below every table.
        quiet = {**data, "records": [{**record, "warnings": []} for record in data["records"]]}
        for kind in sorted({record["kind"] for record in data["records"]}, key=_section_order):
            yield from self._kind(name, kind, results.of_kind(quiet, kind))
            if kind == "accuracy":
                yield from self._accuracy(name, data)
        if any(noisy := list(sections.noise(data))):
            yield from ("## Noise", *noisy)
        if data["gaps"]:
            yield from ("## Not measured", sections.table(data["gaps"]))
        yield from ("## Machine", sections.machine(data))

    def _kind(self, name: str, kind: str, records: list[Record]) -> Iterator[str]:
        from benchmarks import plots

        title = sections.SECTIONS[kind][0] if kind in sections.SECTIONS else f"Checks ({kind.replace('_', ' ')})"
        yield f"## {title}"
        if kind not in plots.FIGURES:
            yield from sections.section(kind, records)
            return
        figure, caption, draw = plots.FIGURES[kind]
        for record in records:
            yield from sections.section(kind, [record])
            if svg := draw(record):
                stem = "-".join((name, record.get("name", ""), record["case"], figure))
                yield self._figure(stem, svg, f"{sections.case_title(record)}: {caption}")

    def _accuracy(self, name: str, data: Result) -> Iterator[str]:
        from benchmarks import plots

        for number, (record, svg) in enumerate(plots.accuracy_against_speed(data), 1):
            caption = f"{sections.case_title(record)}: accuracy against speed"
            yield self._figure(f"{name}-accuracy-speed-{number}", svg, caption)

    def _figure(self, name: str, svg: str, caption: str) -> str:
        stem = re.sub(r"[^\w.]+", "-", name)
        self.figures[stem] = svg
        return f"![{caption}](./{stem}.svg)"

    def _contents(self) -> str:
        """Links to the results and their sections as a Markdown list."""
        anchors, lines = pages.Anchors(), ["- [GPUs side by side](./cards.html)"] if self.with_gpu else []
        for heading in self.parts:
            marks, _, text = heading.partition(" ")
            if set(marks) == {"#"}:
                link = f"[{text}](#{anchors(text)})"
                lines += [f"- {link}" if text in self.names else f"  - {link}"] if marks == "##" else []
        return "\n".join(lines)

    def write(self, folder: Path) -> list[str]:
        """Write the pages and the figures; returns the names of the pages.

        Raises:
            SettingsError: there is nothing to show, or a file cannot be written.
        """
        if not self.parts:
            raise SettingsError("no result can be shown: " + "; ".join(gap["why"] for gap in self.gaps))
        texts = {"report": "\n\n".join(["# Benchmarks", self._contents(), *self.parts]) + "\n"}
        if self.with_gpu:
            texts["cards"] = "\n\n".join(filter(None, cards.page(self.with_gpu))) + "\n"
        for stem, svg in self.figures.items():
            results.write_text(folder / f"{stem}.svg", svg)
        for stem, text in texts.items():
            results.write_text(folder / f"{stem}.md", text)
            results.write_text(folder / f"{stem}.html", page(text, self.figures))
        return [f"{stem}.{suffix}" for stem in texts for suffix in ("html", "md")]


def _section_order(kind: str) -> tuple[int, str]:
    """Where the section of a kind of record stands: as in `sections.SECTIONS`, others behind by name."""
    order = list(sections.SECTIONS)
    return (order.index(kind) if kind in order else len(order)), kind


def page(text: str, figures: dict[str, str]) -> str:
    """Markdown with figures as one HTML file that needs nothing else."""
    files = {f"{stem}.svg": svg for stem, svg in figures.items()}
    return markdown.html_page(text, "isnet_trt benchmarks", files, sortable=False, style=_STYLE)


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
    if not any(map(file.resolve().is_relative_to, (folder, results.FOLDER.resolve()))):
        raise SettingsError(
            f"{file} lies outside the folder of {page} and outside {results.FOLDER}: a table must come from a "
            "committed result"
        )
    try:
        data, name = results.read(file), Path(os.path.relpath(file.resolve(), folder)).as_posix()
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
