"""Pages from results: every kind of record, nothing from elsewhere, bad files named; tables of the documentation."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bench_samples import OURS, accuracy, latency, result
from matplotlib.figure import Figure
from matplotlib.text import Text

from benchmarks import plots, report, results, sections, stats
from isnet_trt import cli
from isnet_trt.errors import SettingsError

ROOT = Path(__file__).parents[2]
STAGE = {"operations": 2e9, "bytes": 3e6, "seconds": 0.02, "floor": 0.01, "share": 0.5, "bound": "compute"}
LIMIT = {
    "kind": "limit",
    "case": "ADE 512x683",
    "name": "isnet_trt onnxruntime fp32",
    "precision": "fp32",
    "threads": 2,
    "quantised": False,
    "rates": {"fp32": {"product": 2e11}, "int8": {"convolution": 6e11}, "memory": {"copy": 2e10}},
    "network_seconds": 0.04,
    "stages": [{"name": "backbone", **STAGE}, {"name": "gather", **STAGE, "operations": 0.0, "bound": "memory"}],
    "total": {"name": "all", **STAGE},
}
GROWTH = {
    "kind": "growth",
    "case": "network",
    "what": "pixels",
    "x": [1e4, 2e4, 4e4],
    "seconds": [0.1, 0.21, 0.45],
    "exponent": 1.08,
    "offset": -12.2,
    "error": 0.02,
    "expected": "1 to 2",
    "why": "attention",
}
SIDES = {side: asdict(stats.spread(seconds)) for side, seconds in (("isnet_trt", OURS), ("reference", OURS))}
POST = {
    "kind": "postprocess",
    "case": "ADE ms+flip, 12 passes",
    "classes": 150,
    "output": [512, 683],
    "inference": "whole",
    "passes": 12,
    "threads": 2,
    "labels_equal": 1.0,
    "seconds": {"isnet_trt": list(OURS), "reference": list(OURS)},
    "summary": SIDES,
    "ratio": asdict(stats.ratios(OURS, OURS)),
    "memory": {"isnet_trt": 4 << 20, "reference": None},
    "warnings": ["isnet_trt: noisy"],
}
PRECISION = {
    "kind": "precision",
    "case": "int8 --max-drop 0.5",
    "engine": "tensorrt",
    "qat": False,
    "bytes": 1_500_000,
    "scores": {"default": {"miou": 74.75, "lost": 0.25, "equal": 99.5}},
    "search": {"skip": ["stem"]},
}
LONG = {
    "kind": "extrapolated",
    "case": "Cityscapes ms+flip",
    "inference": "slide",
    "windows": 262,
    "from": "slide",
    "how": "not measured",
    "seconds": {"reference": 1640.0},
}
CHECK = {
    "kind": "gpu_check",
    "case": "kernels",
    "title": "kernels against their references",
    "status": "failed",
    "why": "one is off",
    "seconds": 1.5,
    "figures": {"seed": 7},
    "rows": [{"kernel": "accumulate", "error": 0.125}],
    "missing": [],
}
BUILT = {"status": "built", "seconds": 9.5, "bytes": 4096, "gate": [], "stride": 8, "facts": {}}
NETWORK = {
    "kind": "network",
    "case": "a detector",
    "source": "--onnx network.onnx",
    "builds": {
        "CPU fp32": BUILT,
        "CPU uint8": BUILT | {"labels_equal": 0.875},
        "RTX fp16": {"status": "refused", "error": "BuildError", "why": "types | of layers"},
    },
    "labels": {"default": {"equal": 0.99995, "ties": 0.001, "wrong": 2, "classes": 9}},
}
PIPELINE = {
    "kind": "pipeline",
    "case": "512×1024, 9 classes, whole",
    "contenders": [
        {
            "name": "isnet_trt",
            "status": "timed",
            "why": "",
            "summary": SIDES["isnet_trt"],
            "memory": {"beyond": 3 << 20},
        },
        {"name": "monai", "status": "refused", "why": "other labels: 99.91 % agree"},
    ],
}
GAP = {"what": "openvino <peer>", "why": "not installed | at all"}


def every_kind() -> dict:
    """A result with a record of every kind that a command writes, and one of a kind that none does."""
    counts = {"kind": "instructions", "case": "host stages", "stages": {"merge": "12,345"}}
    return result(
        latency(), LONG, POST, accuracy(), LIMIT, GROWTH, PRECISION, NETWORK, PIPELINE, CHECK, counts, gaps=(GAP,)
    )


def test_pages_show_every_kind_of_record(tmp_path: Path) -> None:
    results.write(tmp_path / "cpu.json", every_kind())
    assert {record["kind"] for record in every_kind()["records"]} == set(sections.SECTIONS) | {"instructions"}
    assert report.main([str(tmp_path / "cpu.json"), "--out", str(tmp_path / "pages")]) == 0
    page = (tmp_path / "pages" / "report.html").read_text("utf-8")
    text = (tmp_path / "pages" / "report.md").read_text("utf-8")
    for words in (
        "1.32",
        "ADE ms+flip, 12 passes",
        "72.30",
        "backbone",
        "seconds ∝ pixels^1.08",
        "12,345",
        "1640",
        "accumulate",
        "keeps stem",
    ):
        assert words in page
        assert words in text
    assert "openvino &lt;peer&gt;" in page
    assert "not installed \\| at all" in text
    assert page.count("<svg") == 4


def made(tmp_path: Path, *data: dict) -> tuple[str, str]:
    """The report of some results, as Markdown and as HTML."""
    files = [tmp_path / f"result-{number}.json" for number in range(len(data))]
    for file, content in zip(files, data, strict=True):
        results.write(file, content)
    assert report.main([*map(str, files), "--out", str(tmp_path)]) == 0
    return (tmp_path / "report.md").read_text("utf-8"), (tmp_path / "report.html").read_text("utf-8")


def test_results_come_first_and_contents_lead_to_every_section(tmp_path: Path) -> None:
    text, page = made(tmp_path, every_kind(), result(latency()))
    order = ["## In short", "## End to end", "## The limit", "## Noise", "## Not measured", "## Machine"]
    places = [text.index(f"\n{heading}\n") for heading in order]
    assert places == sorted(places)
    links = re.findall(r"^ *- \[.+\]\(#(.+)\)$", text.partition("\n---\n")[0], re.MULTILINE)
    assert len(links) == len(set(links)) == len(re.findall("^## ", text, re.MULTILINE))
    assert set(links) <= set(re.findall('<h2 id="(.+?)">', page))


def test_synthetic_weights_are_named_beside_each_figure(tmp_path: Path) -> None:
    made_up = {"weights": "synthetic"}
    records = [{**record, **made_up} for record in (latency(), accuracy(), LIMIT, GROWTH, LONG)]
    text, page = made(tmp_path, result(*records))
    for record in records:
        assert f"{record['case']} (synthetic weights)" in text
        for heading in re.findall(rf"^#.*{re.escape(record['case'])}.*$", text, re.MULTILINE):
            assert heading.endswith("(synthetic weights)")
    assert page.count("(synthetic weights): ") == text.count("(synthetic weights): ")
    assert re.findall("<figcaption>(.+?)</figcaption>", page)
    assert all("(synthetic weights)" in caption for caption in re.findall("<figcaption>(.+?)</figcaption>", page))
    assert "synthetic" not in made(tmp_path, result(latency()))[0]


def test_nothing_is_above_a_limit_without_a_note(tmp_path: Path) -> None:
    above = {**LIMIT, "stages": [{**STAGE, "name": "stem", "share": 1.08}]}
    assert "Above 100 %" not in made(tmp_path, result(LIMIT))[0]
    text = made(tmp_path, result(above))[0]
    assert "| 108 \\*" in re.sub(" +", " ", text)
    assert text.count("Above 100 %") == 1
    fast = {"case": "ADE", "µs": 47.7, "floor reached %": 150.9}
    check = {**CHECK, "case": "speed.accumulate", "rows": [fast, {**fast, "case": "LIP", "floor reached %": 67.0}]}
    text = made(tmp_path, gpu_result("A", check))[0]
    assert "47.7 µs (151 % of the limit \\*)" in text
    assert "47.7 µs (67 % of the limit)" in text
    assert "Above 100 %" in text


def test_noise_stands_in_one_table(tmp_path: Path) -> None:
    text, _ = made(tmp_path, result(POST))
    assert "**Warning:** isnet_trt: noisy" not in text
    section = text.partition("## Noise")[2].partition("\n## ")[0]
    assert ["ADE ms+flip, 12 passes", "isnet_trt", "noisy"] in map(cells, section.splitlines())
    assert "## Noise" not in made(tmp_path, result({**POST, "warnings": []}))[0]


def gpu_result(card: str, *checks: dict) -> dict:
    return result(*checks, gpus=[{"name": card, "driver_version": "580"}])


def test_cards_stand_side_by_side(tmp_path: Path) -> None:
    def check(case: str, *rows: dict) -> dict:
        return {**CHECK, "case": case, "status": "passed", "why": "", "rows": rows}

    row = {"case": "ADE", "type": "fp16", "µs": 95.3, "floor reached %": 49.0}
    first = gpu_result(
        "A", check("speed.attention", row), check("rates", {"what": "copy", "ms": 0.2, "rate": "3 TB/s"})
    )
    second = gpu_result("B", check("speed.attention", {**row, "µs": 12345.6}), check("kernels.gather", {"right": True}))
    made(tmp_path, first, result(POST), second)
    text = (tmp_path / "cards.md").read_text("utf-8")
    rows = [cells(line) for line in text.splitlines() if line.startswith("|")]
    assert [name.partition(",")[0] for name in rows[0]] == ["measurement", "A", "B"]
    assert ["kernel attention: ADE, fp16", "95.3 µs (49 % of the limit)", "12,346 µs (49 % of the limit)"] in rows
    assert ["rates: copy", "3 TB/s", ""] in rows
    assert ["`kernels.*`", "not run", "passed"] in rows
    assert "[GPUs side by side](./cards.html)" in (tmp_path / "report.md").read_text("utf-8")
    assert "<table>" in (tmp_path / "cards.html").read_text("utf-8")


def test_labels_of_points_do_not_meet() -> None:
    """Points on top of each other, beside a line, in a corner."""
    points = [(1.0, 1.0), (1.0, 1.0), (1.01, 1.0), (1.0, 1.01), (9.0, 9.0), (9.0, 9.0), (1.0, 9.0)]
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*points, strict=True), "o")
    names = [f"contender {number}" for number in range(len(points))]
    plots._label(axes, points, names, [(0.5 * i, 5) for i in range(20)])
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without its line
    assert len(boxes) == len(points)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_memory_on_a_gpu_has_a_column_where_one_was_asked(tmp_path: Path) -> None:
    plain, held = latency(), latency(labels_of="reference")
    held["contenders"][0]["memory"]["device"] = 300 << 20
    held["contenders"][1] = {**held["contenders"][1], "status": "refused", "why": "other labels"}
    for name, record in (("plain", plain), ("held", held)):
        results.write(tmp_path / f"{name}.json", result(record))
        assert report.main([str(tmp_path / f"{name}.json"), "--out", str(tmp_path / name)]) == 0
    with_gpu, without = ((tmp_path / name / "report.md").read_text("utf-8") for name in ("held", "plain"))
    head = next(line for line in with_gpu.splitlines() if "on the GPU MiB" in line)
    row = with_gpu.splitlines()[with_gpu.splitlines().index(head) + 2]
    assert dict(zip(cells(head), cells(row), strict=True)) | {
        "labels equal %": "100.00",
        "beyond weights MiB": "200",
        "on the GPU MiB": "300",
    } == dict(zip(cells(head), cells(row), strict=True))
    assert "reference is not timed: other labels" in with_gpu
    assert "labels compared with those of reference" in with_gpu
    assert "on the GPU" not in without


def test_html_needs_nothing_else(tmp_path: Path) -> None:
    results.write(tmp_path / "cpu.json", every_kind())
    report.main([str(tmp_path / "cpu.json"), "--out", str(tmp_path)])
    page = (tmp_path / "report.html").read_text("utf-8")
    assert not re.search(r"<(script|link|img|iframe)\b", page)
    assert not re.search(r"""(?:src|href)=["']https?:""", page)
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)
    linked = re.findall(r"\]\(\./(.+?)\)", (tmp_path / "report.md").read_text("utf-8"))
    assert len(linked) == 4
    assert all((tmp_path / name).is_file() for name in linked)


def test_numbers_stand_right_and_words_left() -> None:
    rows = [("fp32, 2 threads", "1.92 (1.64–2.06, 94 %)", "5 / 400", "12 rounds"), ("x", "–", "not available", "3")]
    table = sections.table(dict(zip(("name", "times", "MiB", "note"), row, strict=True)) for row in rows)
    assert [cell.endswith(":") for cell in cells(table.splitlines()[1])] == [False, True, True, False]
    page = report.page(f"{table}\n\nby `make <x>`\n", {})
    assert '<td style="text-align:right">not available</td>' in page
    assert "<p>by <code>make &lt;x&gt;</code></p>" in page


def test_checks_of_a_gpu_stand_in_a_table_for_each_group_with_the_card_named(tmp_path: Path) -> None:
    checks = [
        {**CHECK, "case": case, "status": status, "why": why}
        for case, status, why in (
            ("kernels.resize", "passed", ""),
            ("kernels.finite", "failed", "one is off"),
            ("rtx.runs", "could not run", "no library"),
        )
    ]
    data = result(*checks, gpus=[{"name": "NVIDIA H100 80GB HBM3", "driver_version": "580"}])
    results.write(tmp_path / "gpu.json", data)
    assert report.main([str(tmp_path / "gpu.json"), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "on NVIDIA H100 80GB HBM3, last by" in text
    assert "1 passed, 1 failed, 1 could not run." in text
    kernels, rtx = re.split("^### ", text, flags=re.MULTILINE)[1:3]
    title = "kernels against their references"
    assert [f"kernels.finite: {title}", "failed", "1.5", "one is off; seed 7"] in map(cells, kernels.splitlines())
    assert [f"rtx.runs: {title}", "could not run", "1.5", "no library; seed 7"] in map(cells, rtx.splitlines())
    assert ["accumulate", "0.125"] in map(cells, kernels.splitlines())


def test_pages_do_not_change_when_made_again(tmp_path: Path) -> None:
    results.write(tmp_path / "cpu.json", every_kind())
    for folder in ("one", "two"):
        report.main([str(tmp_path / "cpu.json"), "--out", str(tmp_path / folder)])
    assert (tmp_path / "one" / "report.html").read_bytes() == (tmp_path / "two" / "report.html").read_bytes()


def test_results_of_another_layout_are_shown_as_they_are(tmp_path: Path) -> None:
    check = {"card": "some GPU", "steps": {"engine": {"ok": True, "ms": [1.5, 2.5]}, "plugin": {"ok": False}}}
    (tmp_path / "gpu_check.json").write_text(json.dumps(check), "utf-8")
    assert report.main([str(tmp_path / "gpu_check.json"), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text("utf-8")
    assert ["engine", "ok yes, ms 1.5; 2.5"] in map(cells, text.splitlines())


def test_bad_results_are_named_and_the_rest_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.write(tmp_path / "good.json", every_kind())
    (tmp_path / "bad.json").write_text("{", "utf-8")
    (tmp_path / "torn.json").write_text(json.dumps({**every_kind(), "records": [{"kind": "latency"}]}), "utf-8")
    files = [str(tmp_path / f"{name}.json") for name in ("bad", "good", "torn")]
    assert report.main([*files, "--out", str(tmp_path)]) == cli.FAILED
    errors = capsys.readouterr().err
    assert "bad.json" in errors
    assert "torn.json" in errors
    assert cli.run(report.main, [files[0], "--out", str(tmp_path)]) == cli.ERROR


def test_readme_table_follows_its_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, source = tmp_path / "README.md", tmp_path / "results" / "cpu.json"
    check = ["--readme", str(page), "--check"]
    results.write(source, every_kind())
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", "utf-8")
    assert report.main(check) == cli.FAILED
    assert "nothing is between the markers" in capsys.readouterr().out
    assert report.main([str(source), "--readme", str(page)]) == 0
    text = page.read_text("utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    row = ["ADE whole 512x683, onnxruntime fp32", "1.87", "2.45", "1.32 (1.24–1.41, 96 %)", "100.00", "200 / 200"]
    assert row in map(cells, text.splitlines())
    assert "Warnings of noise: 1, listed in the report" in text
    assert report.main(check) == 0


def test_tables_of_networks_and_of_other_tools() -> None:
    text = sections.text([NETWORK, PIPELINE])
    (row,) = (cells(line) for line in text.splitlines() if line.startswith("| a detector"))
    assert row == ["a detector", "`--onnx network.onnx`", "8", "99.995 (2)", "–", "–", "87.5", "refused"]
    assert "- **a detector**, RTX fp16: BuildError: types | of layers" in text
    median, *quartiles = (1e3 * value for value in (SIDES["isnet_trt"]["p50"], *SIDES["isnet_trt"]["quartiles"]))
    assert f"{median:.0f} ({quartiles[0]:.0f}–{quartiles[1]:.0f})" in text
    assert text.count("| 512×1024, 9 classes, whole |") == 2
    assert "- not timed: monai: other labels: 99.91 % agree" in text


def test_a_stale_readme_table_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, source = tmp_path / "README.md", tmp_path / "cpu.json"
    check = ["--readme", str(page), "--check"]
    results.write(source, every_kind())
    page.write_text(f"{report.BEGIN}\n{report.END}\n", "utf-8")
    assert report.main([str(source), *check[:2]]) == 0
    results.write(source, result(latency(tuple(2 * s for s in OURS))))
    assert report.main(check) == cli.FAILED
    assert "is not what the results give" in capsys.readouterr().out
    source.unlink()
    assert report.main(check) == cli.FAILED


def test_a_page_without_markers_and_a_result_elsewhere_are_refused(tmp_path: Path) -> None:
    page, source = tmp_path / "docs" / "README.md", tmp_path / "cpu.json"
    results.write(source, every_kind())
    results.write_text(page, "no markers\n")
    with pytest.raises(SettingsError, match="benchmarks:begin"):
        report.main(["--readme", str(page), "--check"])
    with pytest.raises(SettingsError, match="lies outside the folder"):
        report.main([str(source), "--readme", str(page)])
    results.write_text(page, f"{report.BEGIN}\n{report.END}\n")
    committed = str(results.FOLDER / "cpu-epyc-2-cores.json")
    assert report.main([committed, "--readme", str(page)]) == 0
    assert report.main(["--readme", str(page), "--check"]) == 0
    assert cli.run(report.main, ["--readme", str(tmp_path / "none.md"), "--check"]) == cli.ERROR


def test_check_without_a_page_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        report.main(["--check"])
    assert ended.value.code == cli.ERROR
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("page", ["README.md", "networks.md", "pipelines.md"])
def test_the_committed_tables_are_not_stale(page: str) -> None:
    assert report.main(["--readme", str(results.FOLDER / page), "--check"]) == 0


@pytest.mark.parametrize(("page", "source"), [("README.md", "README.md"), ("docs/comparison.md", "pipelines.md")])
def test_pages_show_rows_of_the_committed_tables(page: str, source: str) -> None:
    shown = (ROOT / page).read_text("utf-8").partition(f"{source}: begin -->\n")[2].partition("\n<!--")[0]
    rows = (results.FOLDER / source).read_text("utf-8").splitlines()
    assert [line for line in shown.splitlines() if line and line not in rows] == []
    assert len(shown.splitlines()) > 8


def test_every_committed_result_is_shown(tmp_path: Path) -> None:
    assert report.main(["--out", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text("utf-8")
    assert all(f"## {file.stem}\n" in text for file in results.FOLDER.glob("*.json"))


def test_the_table_of_what_has_run_on_which_gpu_is_made_from_the_results(tmp_path, capsys):
    page = ROOT / "docs" / "gpu.md"
    assert report.main(["--gpu", str(page), "--check"]) == 0
    text = page.read_text("utf-8")
    assert "| `kernels.*` | 10 passed |" in text
    assert (
        "| `trt.*` | could not run: runs, plugins, precisions (the Python package tensorrt is not installed) |" in text
    )
    copy = tmp_path / "gpu.md"
    copy.write_text(text.replace("10 passed", "11 passed"), "utf-8")
    assert report.main(["--gpu", str(copy), "--check"]) == 1
    assert "is not what the results give" in capsys.readouterr().out
    assert report.main(["--gpu", str(copy)]) == 0
    assert copy.read_text("utf-8") == text
