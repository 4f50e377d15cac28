"""Pages from results: every kind of record, nothing from elsewhere, bad files named; the README's table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bench_samples import OURS, accuracy, latency, result

from benchmarks import pages, readme, report, results, sections, stats
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
SIDES = {side: stats.spread(seconds).to_json() for side, seconds in (("isnet_trt", OURS), ("reference", OURS))}
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
    "ratio": stats.ratios(OURS, OURS).to_json(),
    "memory": {"isnet_trt": 4 << 20, "reference": None},
    "warnings": ["isnet_trt: noisy"],
}
COUNTS = {"kind": "instructions", "case": "host stages", "tool": "valgrind-3", "stages": {"merge": 12345}}
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
GAP = {"what": "openvino <peer>", "why": "not installed | at all"}


def whole() -> dict:
    return result(latency(), LONG, POST, accuracy(), LIMIT, GROWTH, COUNTS, CHECK, gaps=(GAP,))


def test_pages_show_every_kind_of_record(tmp_path: Path) -> None:
    results.write(tmp_path / "cpu.json", whole())
    assert {record["kind"] for record in whole()["records"]} == set(sections.KINDS)
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
    ):
        assert words in page
        assert words in text
    assert "openvino &lt;peer&gt;" in page
    assert "not installed \\| at all" in text
    assert page.count("<svg") == 5


def test_what_a_gpu_held_has_a_column_where_one_was_asked(tmp_path: Path) -> None:
    plain, held = latency(), latency(labels_of="reference")
    held["contenders"][0]["memory"]["device"] = 300 << 20
    held["contenders"][1] = {**held["contenders"][1], "status": "refused", "why": "another answer"}
    for name, record in (("plain", plain), ("held", held)):
        results.write(tmp_path / f"{name}.json", result(record))
        assert report.main([str(tmp_path / f"{name}.json"), "--out", str(tmp_path / name)]) == 0
    with_gpu, without = ((tmp_path / name / "report.md").read_text("utf-8") for name in ("held", "plain"))
    assert "| beyond weights MiB | on the GPU MiB |" in with_gpu
    assert "| 100.00 | 200 | 300 |" in with_gpu
    assert "labels compared with those of reference" in with_gpu
    assert "on the GPU" not in without


def test_html_needs_nothing_else(tmp_path: Path) -> None:
    results.write(tmp_path / "cpu.json", whole())
    report.main([str(tmp_path / "cpu.json"), "--out", str(tmp_path)])
    page = (tmp_path / "report.html").read_text("utf-8")
    assert not re.search(r"<(script|link|img|iframe)\b", page)
    assert not re.search(r"""(?:src|href)=["']https?:""", page)
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)
    linked = re.findall(r"\]\(\./(.+?)\)", (tmp_path / "report.md").read_text("utf-8"))
    assert len(linked) == 5
    assert all((tmp_path / name).is_file() for name in linked)


def test_numbers_stand_right_and_words_left() -> None:
    rows = [("fp32, 2 threads", "1.92 (1.64–2.06, 94 %)", "5 / 400", "12 rounds"), ("x", "–", "not available", "3")]
    page = pages.page([pages.Table(("name", "times", "MiB", "note"), rows), pages.Text("by `make <x>`")], "t")
    assert '<th>name</th><th class="n">times</th><th class="n">MiB</th><th>note</th>' in page
    assert '<td>x</td><td class="n">–</td><td class="n">not available</td><td>3</td>' in page
    assert "<p>by <code>make &lt;x&gt;</code></p>" in page


def test_pages_do_not_change_when_made_again(tmp_path: Path) -> None:
    results.write(tmp_path / "cpu.json", whole())
    for folder in ("one", "two"):
        report.main([str(tmp_path / "cpu.json"), "--out", str(tmp_path / folder)])
    assert (tmp_path / "one" / "report.html").read_bytes() == (tmp_path / "two" / "report.html").read_bytes()


def test_results_of_another_layout_are_shown_as_they_are(tmp_path: Path) -> None:
    check = {"card": "some GPU", "steps": {"engine": {"ok": True, "ms": [1.5, 2.5]}, "plugin": {"ok": False}}}
    (tmp_path / "gpu_check.json").write_text(json.dumps(check), "utf-8")
    assert report.main([str(tmp_path / "gpu_check.json"), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "| engine | ok True, ms [1.5, 2.5] |" in text


def test_bad_results_are_named_and_the_rest_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results.write(tmp_path / "good.json", whole())
    (tmp_path / "bad.json").write_text("{", "utf-8")
    (tmp_path / "torn.json").write_text(json.dumps({**whole(), "records": [{"kind": "latency"}]}), "utf-8")
    files = [str(tmp_path / f"{name}.json") for name in ("bad", "good", "torn")]
    assert report.main([*files, "--out", str(tmp_path)]) == cli.FAILED
    said = capsys.readouterr().err
    assert "bad.json" in said
    assert "torn.json" in said
    assert cli.run(report.main, [files[0], "--out", str(tmp_path)]) == cli.ERROR


def test_readme_table_follows_its_result(tmp_path: Path) -> None:
    page, source = tmp_path / "README.md", tmp_path / "results" / "cpu.json"
    results.write(source, whole())
    page.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n", "utf-8")
    assert "nothing is between" in readme.stale(page)
    assert report.main([str(source), "--readme", str(page)]) == 0
    text = page.read_text("utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    row = "| ADE whole 512x683, onnxruntime fp32 | 1.87 | 2.45 | 1.32 (1.24–1.41, 96 %) | 100.00 | 200 / 200 |"
    assert row in text
    assert "1 of the figures carry a warning" in text
    assert readme.stale(page) == ""
    assert report.main(["--readme", str(page), "--check"]) == 0


def test_a_stale_readme_table_is_noticed(tmp_path: Path) -> None:
    page, source = tmp_path / "README.md", tmp_path / "cpu.json"
    results.write(source, whole())
    page.write_text(f"{readme.BEGIN}\n{readme.END}\n", "utf-8")
    readme.update(page, source)
    results.write(source, result(latency(tuple(2 * s for s in OURS))))
    assert "is not what cpu.json gives" in readme.stale(page)
    assert report.main(["--readme", str(page), "--check"]) == cli.FAILED
    source.unlink()
    assert "cannot be read" in readme.stale(page)


def test_a_page_without_markers_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("no markers\n", "utf-8")
    with pytest.raises(SettingsError, match="benchmarks:begin"):
        readme.stale(page)
    assert cli.run(report.main, ["--readme", str(tmp_path / "none.md"), "--check"]) == cli.ERROR


def test_check_without_a_page_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        report.main(["--check"])
    assert ended.value.code == cli.ERROR
    assert list(tmp_path.iterdir()) == []


def test_the_projects_readme_is_not_stale() -> None:
    page = ROOT / "README.md"
    if readme.BEGIN not in page.read_text("utf-8"):
        pytest.skip("README.md has no table of results")
    assert readme.stale(page) == ""
