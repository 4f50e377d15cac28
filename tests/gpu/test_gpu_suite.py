"""The order, the processes and the records of GPU tests, with small tests that fail, abort, hang and lack something."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import PATIENCE, explained, wait_until

from benchmarks import report, results
from isnet_trt.errors import EngineUnavailable
from tests.gpu.record import CannotRun, Record, plain

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the tests on a GPU are for Linux")
CONFTEST = """
import tests.gpu.conftest as suite
from isnet_trt.cuda.gpu import Gpu
suite.probe = lambda: (Gpu("Card Double", "8.9", "CUDA 13.0"), "")
suite.GRACE = 1
from tests.gpu.conftest import *
"""
SAMPLES = '''
import ctypes, os, time
from pathlib import Path
import pytest
from tests.gpu.record import CannotRun

def gpu(case, order=5, limit=60, **options):
    return pytest.mark.gpu(case, order, limit, **options)

@gpu("good")
def test_good(record, target):
    """A test that passes."""
    record.figure("process", os.getpid())
    record.figure("seed", target.seed)
    record.row(case="one", value=1.5)

@gpu("first", 1)
def test_first(record):
    """What is worth most."""

@gpu("later", 6)
def test_later(record):
    """A test that uses what another found."""
    record.figure("process", os.getpid())
    record.figure("what good found", record.known("good", "seed"))
    record.skip("a part", "its library is not here")

@gpu("wrong")
def test_wrong(record):
    """A test that finds something wrong and goes on."""
    record.require(False, "the sum is off by 3")
    record.row(case="after", value=2)

@gpu("raising")
def test_raising(record):
    """A test that raises."""
    record.row(case="before", value=1)
    raise ZeroDivisionError("no number of parts")

@gpu("aborting")
def test_aborting(record):
    """A test whose process aborts."""
    record.row(case="before", value=1)
    os.write(2, b"terminate called without an active exception")  # as a library of C++ does
    os.abort()

@gpu("crashing")
def test_crashing(record):
    """A test whose process crashes."""
    ctypes.string_at(0)

@gpu("hanging", limit=1)
def test_hanging(record):
    """A test that does not end."""
    record.row(case="before", value=1)
    time.sleep(600)

@gpu("deadlocked", limit=1)
def test_deadlocked(record):
    """A test that keeps Python's lock for ever."""
    ctypes.PyDLL(None).sleep(600)

@gpu("lacking")
def test_lacking(record):
    """A test that cannot run here."""
    raise CannotRun("compute capability 1.0 has no matrix units")

@gpu("slow", 99, slow=True)
def test_slow(record):
    """A test of some time: where there is a gate, until somebody has opened it."""
    if Path("gate").exists():
        Path("gate").read_bytes()
'''


class Run:
    """Runs of the samples in a folder; `rows` are the records of the last."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "gpu.json"
        (folder / "conftest.py").write_text(CONFTEST, "utf-8")
        (folder / "test_samples.py").write_text(SAMPLES, "utf-8")
        (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: on a GPU\n", "utf-8")

    def start(self, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--seed", "7", str(self.folder)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
        return subprocess.Popen(
            [*command, "--gpu-out", str(self.out), *options], cwd=self.folder, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def __call__(self, *options: str) -> str:
        return self.start(*options).communicate(timeout=PATIENCE)[0]

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["case"]: row for row in results.read(self.out)["records"]}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("samples"))
    run.told = run()  # type: ignore[attr-defined]
    return run


def test_every_test_has_its_record_whatever_becomes_of_it(everything: Run) -> None:
    rows = everything.rows
    assert next(iter(rows)) == "first"
    assert list(rows)[-1] == "slow"
    statuses = {case: row["status"] for case, row in rows.items()}
    failed = {"wrong", "raising", "aborting", "crashing", "hanging", "deadlocked"}
    assert {case for case, status in statuses.items() if status == "failed"} == failed, everything.told  # type: ignore[attr-defined]
    assert statuses["lacking"] == "could not run"
    assert rows["lacking"]["why"] == "compute capability 1.0 has no matrix units"
    good = rows["good"]
    assert (good["status"], good["why"], good["title"]) == ("passed", "", "A test that passes")
    assert good["rows"] == [{"case": "one", "value": 1.5}]
    assert rows["later"]["figures"]["what good found"] == good["figures"]["seed"] == 7
    assert rows["later"]["missing"] == [{"what": "a part", "why": "its library is not here"}]


def test_what_was_found_before_a_failure_stays(everything: Run) -> None:
    rows = everything.rows
    assert (rows["wrong"]["why"], rows["wrong"]["rows"]) == ("the sum is off by 3", [{"case": "after", "value": 2}])
    assert rows["raising"]["why"].startswith("ZeroDivisionError: no number of parts")
    for case in ("raising", "aborting", "hanging"):
        assert rows[case]["rows"] == [{"case": "before", "value": 1}]
    assert "signal 6" in rows["aborting"]["why"]
    assert "terminate called without an active exception" in rows["aborting"]["why"]
    assert "test_crashing" in rows["crashing"]["why"]  # the stack of the call
    assert "Timeout" in rows["hanging"]["why"]
    assert "test_deadlocked" in rows["deadlocked"]["why"]


def test_tests_have_processes_of_their_own_and_the_report_shows_them(everything: Run, tmp_path: Path) -> None:
    processes = [everything.rows[case]["figures"]["process"] for case in ("good", "later")]
    assert processes[0] != processes[1]
    gaps = {one["what"]: one["why"] for one in results.read(everything.out)["gaps"]}
    assert set(gaps) == {"lacking", "later: a part"}
    assert report.main([str(everything.out), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "report.md").read_text("utf-8")
    for words in ("the sum is off by 3", "compute capability 1.0 has no matrix units", "its library is not"):
        assert words in page


def test_resume_keeps_what_passed_or_failed_and_quick_leaves_out_slow_cases(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run("--quick", "-k", "good or wrong or lacking or slow")
    first = run.rows
    assert set(first) == {"good", "wrong", "lacking"}
    run("--resume", "-k", "good or wrong or lacking or first")
    again = run.rows
    assert again["good"] == first["good"]  # the same process number: it did not run again
    assert set(again) == {"first", "good", "wrong", "lacking"}
    run("-k", "good")  # without --resume it runs again; of the others stay those that passed or failed
    assert run.rows["good"] != first["good"]
    assert set(run.rows) == {"first", "good", "wrong"}


def test_when_the_minutes_are_used_up_the_rest_is_listed(tmp_path: Path) -> None:
    run = Run(tmp_path)
    told = run("--minutes", "0.0001", "-k", "first or good or later")
    assert set(run.rows) == {"first"}
    gaps = {one["what"]: one["why"] for one in results.read(run.out)["gaps"]}
    assert set(gaps) == {"good", "later"}
    assert "minutes are used up; --resume goes on" in gaps["good"]
    assert "--resume goes on" in told


def test_a_run_that_is_killed_leaves_a_whole_file(tmp_path: Path) -> None:
    run = Run(tmp_path)
    os.mkfifo(tmp_path / "gate")
    process = run.start("-k", "first or slow")
    wait_until(lambda: run.out.exists() or process.poll() is not None)
    assert run.out.exists(), process.communicate()
    process.kill()
    process.wait(PATIENCE)
    with contextlib.suppress(OSError):  # the second test's process may not wait there yet
        os.close(os.open(tmp_path / "gate", os.O_WRONLY | os.O_NONBLOCK))
    assert [(row["case"], row["status"]) for row in run.rows.values()] == [("first", "passed")]


def test_the_plan_runs_nothing_and_names_the_order_with_estimates(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu", "-m", "gpu", "--gpu-plan"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert ran.returncode == 0, explained(ran)
    lines = [line for line in ran.stdout.splitlines() if " s  " in line]
    assert lines[0].startswith("machine ")
    cases = [line.split()[0] for line in lines]
    assert len(set(cases)) == len(cases) > 60
    assert cases.index("kernels.attention") < cases.index("trt.runs") < cases.index("runtime.stages")
    estimate = next(line for line in lines if line.startswith("runtime.stages")).split()[1]
    assert estimate == "8.4"  # of the committed result


def suite_run(*options: object) -> str:
    """What the tests on a GPU print with ``options``."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu", "-m", "gpu", "--quick"]
    ran = subprocess.run([*command, *map(str, options)], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert "written: " in ran.stdout or "tests, at most" in ran.stdout, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.slow
def test_a_dry_run_enters_the_steps_in_order_and_writes_their_results(tmp_path: Path) -> None:
    """Without a GPU: the bodies run on doubles to their end, or to what a double lacks, which is named."""
    choice = "machine or rates or trt. or bundles.tensorrt or models"
    printed = suite_run("--gpu-dry-run", "--gpu-out", tmp_path / "dry.json", "-k", choice)
    result = results.read(tmp_path / "dry.json")
    rows = {row["case"]: row for row in result["records"]}
    assert result["dry_run"] is True
    assert {row["status"] for row in rows.values()} == {"passed", "could not run"}, printed
    assert {case for case, row in rows.items() if row["status"] == "passed"} >= {"machine", "rates", "trt.runs"}
    assert [row["answer"] for row in rows["trt.runs"]["rows"]] == ["runs"] * 3
    assert "engine of a whole network" in rows["bundles.tensorrt.fp32"]["why"]
    lines = [line for line in printed.splitlines() if " s of " in line]
    assert [line.split()[0] for line in lines] == list(rows)


def test_the_plan_of_some_minutes_names_what_is_left_out() -> None:
    lines = suite_run("--gpu-plan", "--minutes", 2, "-k", "machine or rates or bundles.tensorrt.").splitlines()
    planned = [line.split()[0] for line in lines if " s  limit " in line]
    assert planned[:3] == ["machine", "rates", "bundles.tensorrt.fp32"]
    late = next(line for line in lines if line.startswith("beyond 2 minutes: ")).split(": ")[1].split(", ")
    assert "bundles.tensorrt.fp16" in planned
    assert set(late) >= {"bundles.tensorrt.int8", "bundles.tensorrt.bf16", "bundles.tensorrt.two"}
    assert not set(late) & set(planned)


def test_collecting_does_not_touch_the_driver() -> None:
    """A process that has called it cannot be forked to use it: every test would fail."""
    script = """
import sys, pytest
from isnet_trt.cuda import gpu
gpu._Driver.__init__ = lambda *arguments: sys.exit("the driver is loaded")
class Probe:
    def pytest_configure(self, config):
        sys.modules["conftest"].probe = lambda: (None, "asked in another process")
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--collect-only", "tests/gpu"], [Probe()]))
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert ran.returncode == 0, explained(ran)


def test_a_part_that_fails_costs_that_part_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record(tmp_path / "r.jsonl")
    for what, error, lacking in (
        ("one", EngineUnavailable("no such library"), ()), ("two", ZeroDivisionError("no\nparts"), ()),
        ("three", ZeroDivisionError("no units"), (ZeroDivisionError,)), ("four", CannotRun("not here"), ()),
    ):  # fmt: skip
        with record.part(what, *lacking):
            raise error
    assert [one["what"] for one in record.missing] == ["one", "three", "four"]
    assert record.wrong[0].startswith("two: ZeroDivisionError: no parts (test_gpu_suite.py:")
    assert Record.load(tmp_path / "r.jsonl").wrong == record.wrong
    monkeypatch.setattr("tests.gpu.record.device_lost", lambda: True)
    with pytest.raises(RuntimeError, match="refused"), record.part("two"):
        raise RuntimeError("refused")


def test_numbers_of_every_kind_become_json() -> None:
    values = plain({"a": np.float32(1.5), "b": [np.int64(3), float("nan")], "c": Path("x"), "d": (True, None)})
    assert json.loads(json.dumps(values, allow_nan=False)) == {"a": 1.5, "b": [3, "nan"], "c": "x", "d": [True, None]}
