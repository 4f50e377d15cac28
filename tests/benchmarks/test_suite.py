"""The committed cases on the trained demo model, small: build, time, compare, limit; resuming."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.metadata
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import accuracy, limit, results, suite
from isnet_trt import cli
from isnet_trt.bundle import read_bundle
from isnet_trt.errors import SettingsError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> suite.Workshop:
    return suite.Workshop(tmp_path_factory.mktemp("work"), [])


@pytest.mark.slow
def test_a_part_times_bundle_and_peers(
    workshop: suite.Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = "--images SCENE --image-size 96 160 --scales 0.25 --mode slide --window 64 96 --stride 43 64 --flip"
    part = suite.Part("latency", f"{options} --against reference pytorch", suite.DEMO, ("fp32",))
    monkeypatch.setitem(suite.PARTS, "small", part)
    out = tmp_path / "suite.json"
    arguments = ["--parts", "small", "--rounds", "1", "--threads", "1", "--work", str(workshop.folder)]
    assert suite.main([*arguments, "--out", str(out)]) == 0
    (record,) = results.read(out)["records"]
    assert (record["case"], record["part"], record["rounds"]) == ("small", "small", 1)
    assert {c["name"]: c["status"] for c in record["contenders"]} == {
        "isnet_trt onnxruntime fp32": "timed",
        "reference": "timed",
        "pytorch": "timed",
    }
    assert {r["over"] for r in record["ratios"]} == {"reference", "pytorch"}
    assert record["contenders"][0]["agreement"]["clear"] == 1.0


@pytest.mark.parametrize("name", [name for name, part in suite.PARTS.items() if part.command])
def test_every_part_is_a_command_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, workshop = suite.PARTS[name], suite.Workshop(tmp_path, [])
    monkeypatch.setattr(workshop, "bundles", lambda recipe, precisions: [tmp_path / p for p in precisions])
    monkeypatch.setattr(workshop, "checkpoint", lambda recipe: tmp_path / "one.pth")
    line = workshop.command_line(name, part)
    parsed: list[argparse.Namespace] = []

    def stop(parser: argparse.ArgumentParser, argv: list[str]) -> None:
        parsed.append(parse(parser, argv))
        raise InterruptedError

    parse = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(InterruptedError):
        importlib.import_module(f"benchmarks.{part.command}").main(line)
    assert "SCENE" not in line
    assert getattr(parsed[0], "case", name) == name


@pytest.mark.slow
def test_accuracy_of_the_demo_bundle_is_the_checkpoints(workshop: suite.Workshop, tmp_path: Path) -> None:
    (bundle,) = workshop.bundles(suite.DEMO, ("fp32",))
    out = tmp_path / "accuracy.json"
    arguments = [str(bundle), str(tmp_path / "nowhere"), "--ckpt", str(suite.DEMO_CHECKPOINT), "--scenes", "1"]
    arguments += ["--image-size", "96", "192", "--presets", "default", "--threads", "1", "--out", str(out)]
    assert accuracy.main(arguments) == cli.FAILED
    data = results.read(out)
    assert [gap["what"] for gap in data["gaps"]] == [f"bundle {tmp_path / 'nowhere'}"]
    checkpoint, ours = data["records"][0]["rows"]
    assert ours["agreement"]["clear"] == 1.0
    assert ours["agreement"]["boundary"] > 0.99
    assert ours["miou"] == pytest.approx(checkpoint["miou"], abs=1e-3)
    assert 0.1 < ours["miou"] < 1
    assert len(ours["iou"]) == len(data["records"][0]["classes"]) == 9


@pytest.mark.slow
def test_limit_of_the_demo_bundle(workshop: suite.Workshop) -> None:
    (bundle,) = workshop.bundles(suite.DEMO, ("fp32",))
    record = limit.measure("demo", read_bundle(bundle), (96, 160), limit.measure_rates(1, 1), threads=1, rounds=1)
    names = [stage["name"] for stage in record["stages"]]
    assert names[0] == "backbone_net.stem"
    assert names[-4:] == ["decoder_stage2", "resize", "gather", "merge"]
    assert all(stage["bytes"] > 0 for stage in record["stages"])
    assert sum(stage["operations"] for stage in record["stages"]) == pytest.approx(record["total"]["operations"])


def test_unknown_precisions_and_recipes_are_gaps(tmp_path: Path) -> None:
    workshop = suite.Workshop(tmp_path, [])
    with pytest.raises(SettingsError, match="no bundle"):
        workshop.bundles(suite.DEMO, ("fp8",))
    assert [gap["what"] for gap in workshop.gaps] == ["isnet_demo in fp8"]
    with pytest.raises(SettingsError, match="no synthetic weights"):
        workshop.checkpoint("isnet_nothing")


def test_parts_can_be_chosen_kept_and_measured_again(tmp_path: Path) -> None:
    out = tmp_path / "suite.json"
    kept = {"kind": "growth", "case": "kept", "part": "another part"}
    stale = {"kind": "extrapolated", "case": "stale", "part": "Cityscapes ms+flip, extrapolated"}
    slide = {"kind": "latency", "case": "Cityscapes slide 1024x2048", "part": "Cityscapes slide", "windows": 15}
    timed = {"name": "reference", "status": "timed", "summary": {"p50": 90.0}}
    gaps = [results.gap("isnet_demo in fp8", "no such convolutions"), results.gap(f"{stale['part']}: x", "found again")]
    earlier = results.result([kept, stale, {**slide, "contenders": [timed]}], gaps)
    results.write(out, {**earlier, "date": "2026-01-02T03:04:05+00:00"})
    assert suite.main(["--parts", "extrapolated", "--out", str(out)]) == 0
    records = {record["case"]: record for record in results.read(out)["records"]}
    assert set(records) == {"kept", "Cityscapes slide 1024x2048", "Cityscapes ms+flip 1024x2048"}
    far = records["Cityscapes ms+flip 1024x2048"]
    assert far["windows"] == 262
    assert far["seconds"] == {"reference": pytest.approx(90.0 * 262 / 15)}
    assert "not measured" in far["how"]
    assert [gap["what"] for gap in results.read(out)["gaps"]] == ["isnet_demo in fp8"]
    assert records["kept"]["date"] == "2026-01-02T03:04:05+00:00"
    assert results.dates(results.read(out)) == f"2026-01-02 to {far['date'][:10]}"


def test_results_of_two_machines_do_not_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "suite.json"
    elsewhere = results.result([{"kind": "growth", "case": "kept", "part": "another part"}], [])
    elsewhere["machine"]["processor"] = "another processor"
    results.write(out, elsewhere)
    assert cli.run(suite.main, ["--parts", "extrapolated", "--out", str(out)]) == cli.ERROR
    assert "another processor" in capsys.readouterr().err
    assert results.read(out) == elsewhere


def test_nothing_to_measure_is_an_error(tmp_path: Path) -> None:
    out = tmp_path / "suite.json"
    assert suite.main(["--parts", "extrapolated", "--out", str(out)]) == cli.ERROR


def test_the_bench_extra_brings_what_the_benchmarks_import() -> None:
    """`pip install '.[cpu,bench]'` is what docs/benchmarks.md asks for; some commands need another extra."""
    extras = ("cpu", "bench", "networks", "ray")
    setup: dict[str, Any] = {}
    for node in ast.parse((ROOT / "setup.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.List | ast.Dict):
            exec(compile(ast.Module([node], []), "setup.py", "exec"), setup)
    brought = {
        re.split(r"[^\w-]", text)[0].lower()
        for text in (*setup["RUNTIME"], *(text for extra in extras for text in setup["EXTRAS"][extra]))
    }
    files = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "benchmarks" / "peers").glob("*.py")]
    ours = ("benchmarks", "isnet_trt", "tests", "tritonclient")  # the last from make test-triton-server alone
    imported = set.union(*map(_imported, files)) - {*sys.stdlib_module_names, *ours}
    owners = importlib.metadata.packages_distributions()
    assert {"torch", "scipy"} <= imported
    names = {name: {name.replace("_", "-"), *(owner.lower() for owner in owners.get(name, ()))} for name in imported}
    assert {name for name in imported if not names[name] & brought} == set()


def _imported(file: Path) -> set[str]:
    """The packages that a file imports, at its head or where it needs them."""
    nodes = list(ast.walk(ast.parse(file.read_text("utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {n.split(".")[0] for n in plain | {str(n.module) for n in nodes if isinstance(n, ast.ImportFrom)}}


def test_a_part_that_there_is_not_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "suite.json"
    results.write(out, results.result([{"kind": "growth", "case": "kept", "part": "another part"}], []))
    before = out.read_bytes()
    assert cli.run(suite.main, ["--parts", "extrapolated", "nonsense", "--out", str(out)]) == cli.ERROR
    printed = capsys.readouterr()
    assert "nonsense: no part is called so" in printed.err
    assert "written" not in printed.out
    assert out.read_bytes() == before
