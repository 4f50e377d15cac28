"""The runner of GPU checks, with real processes that fail, abort and hang; what this machine lacks; what is written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu_check_samples
import numpy as np
import pytest
from gpu_check_answers import Collected

from benchmarks import report, results
from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check import catalogue, needs, runner, runtime, section, worker
from benchmarks.gpu_check.check import Answer, CannotRun, Check, Setup, part, plain
from isnet_trt import cli
from isnet_trt.cuda.gpu import find_gpu
from isnet_trt.errors import EngineUnavailable, SettingsError
from isnet_trt.recipes import RECIPES

MODULE = "gpu_check_samples"
here = find_gpu()


def run(*names: str, minutes: float | None = None, done: list[dict] | None = None, **about: Any) -> dict[str, dict]:
    """Records by name of the samples called ``names``."""
    chosen = [next(c for c in gpu_check_samples.CHECKS if c.name == name) for name in names]
    kept: list[list[dict]] = []
    said: list[str] = []
    rows = runner.run(
        runner.Plan((MODULE,), chosen, done or []), Setup(seed=7, **about), runner.Clock(minutes),
        lambda rows: kept.append(list(rows)), lambda row: said.append(section.line(row)),
    )  # fmt: skip
    if kept:
        assert kept[-1] == rows
    assert len(said) == len(kept)
    return {row["case"]: row for row in rows}


@pytest.fixture(scope="module")
def all_of_them() -> dict[str, dict]:
    return run("good", "later", "wrong", "raising", "aborting", "lacking", "needing", "alone", "good")


def test_what_is_right_passes_and_hands_its_figures_on(all_of_them):
    good, later = all_of_them["good"], all_of_them["later"]
    assert (good["status"], good["why"], good["rows"]) == ("passed", "", [{"case": "one", "value": 1.5}])
    assert good["figures"]["seed"] == 7
    assert later["figures"]["what good found"] == 7
    assert later["figures"]["what nobody found"] is None
    assert later["missing"] == [{"what": "a part", "why": "its library is not here"}]


def test_what_is_wrong_fails_in_words_and_keeps_its_rows(all_of_them):
    wrong, raising = all_of_them["wrong"], all_of_them["raising"]
    assert (wrong["status"], wrong["why"]) == ("failed", "the sum is off by 3")
    assert wrong["rows"] == [{"case": "after", "value": 2}]
    assert raising["status"] == "failed"
    assert raising["why"].startswith("ZeroDivisionError: no number of parts (gpu_check_samples.py:")
    assert raising["rows"] == [{"case": "before", "value": 1}]


def test_a_process_that_aborts_stops_no_other_check(all_of_them):
    aborting = all_of_them["aborting"]
    assert aborting["status"] == "failed"
    assert "SIGABRT" in aborting["why"]
    assert "terminate called without an active exception" in aborting["why"]
    assert aborting["rows"] == [{"case": "before", "value": 1}]
    assert all_of_them["alone"]["status"] == "passed"


def test_what_is_missing_is_named(all_of_them):
    assert all_of_them["lacking"]["status"] == "could not run"
    assert all_of_them["lacking"]["why"] == "compute capability 1.0 has no matrix units"
    assert all_of_them["needing"]["status"] == "could not run"
    assert "CUDA provider" in all_of_them["needing"]["why"]


def test_checks_share_a_process_until_one_fails_or_wants_its_own(all_of_them):
    processes = {name: row["figures"].get("process") for name, row in all_of_them.items()}
    assert processes["good"] == processes["later"]
    assert processes["alone"] not in (processes["good"], os.getpid())


def test_a_check_that_hangs_is_killed_with_what_it_started():
    row = run("hanging", "good")
    assert row["hanging"]["status"] == "failed"
    assert "did not end within 3 s and was killed" in row["hanging"]["why"]
    assert row["hanging"]["rows"] == [{"case": "before", "value": 1}]
    assert row["good"]["status"] == "passed"
    assert gone(row["hanging"]["figures"]["child"])


def test_a_crash_leaves_the_stack_of_its_call():
    row = run("crashing", "good")
    assert row["crashing"]["status"] == "failed"
    assert "signal SIGSEGV" in row["crashing"]["why"]
    assert "gpu_check_samples.py:" in row["crashing"]["why"]
    assert "crashing;" in row["crashing"]["why"]
    assert row["good"]["status"] == "passed"


def test_what_hangs_says_where_even_if_it_keeps_the_lock():
    row = run("deadlocked")["deadlocked"]
    assert row["status"] == "failed"
    assert "did not end within 2 s and was killed; it said: " in row["why"]
    assert "gpu_check_samples.py:" in row["why"]
    assert "deadlocked;" in row["why"]


def test_stacks_are_shortened_from_their_far_end():
    frames = [f'  File "/far/away/module{i}.py", line {i} in call{i}' for i in range(9)]
    said = ["building", "Fatal Python error: Aborted", "", "Thread 0x1 (most recent call first):", *frames]
    said += ["", "Extension modules: numpy.core, and others (total: 99)"]
    told = worker.shortened("\n".join(said))
    assert told.startswith(
        "building Fatal Python error: Aborted Thread 0x1 (most recent call first): module0.py:0 call0;"
    )
    assert "module3.py:3 call3;" in told
    assert "module4" not in told
    assert "numpy" not in told


def test_words_of_several_lines_stay_in_their_row_of_the_page(tmp_path):
    row = run("wordy")["wordy"]
    assert row["why"].startswith(
        "RuntimeError: CUDA error: misaligned address CUDA kernel errors might be | asynchronous."
    )
    rows = [{**row, "rows": [{"answer": "first line\nsecond line"}]}]
    command.write(tmp_path / "gpu.json", results.result((), ()), rows)
    page = (tmp_path / "gpu.md").read_text("utf-8")
    assert "first line second line" in page
    for line in page.splitlines():
        assert not line or line.startswith(("|", "#", "Checked", "0 passed", "**Warning"))


def test_what_a_check_has_found_is_written_while_it_runs(monkeypatch):
    monkeypatch.setattr(runner, "EVERY", 0.0)
    kept: list[list[dict]] = []
    check = next(c for c in gpu_check_samples.CHECKS if c.name == "growing")
    plan = runner.Plan((MODULE,), [check])
    runner.run(plan, Setup(), runner.Clock(3 / 60), lambda rows: kept.append(list(rows)), lambda row: None)
    ((early,), *_) = kept
    assert early["rows"] == [{"case": "early", "value": 1}]
    assert (early["status"], early["why"]) == ("could not run", "it had not ended")
    assert kept[1][0]["why"] == "the first part is off; it had not ended"
    assert kept[1][0]["status"] == "failed"
    assert kept[-1][0]["status"] == "failed"


def test_a_part_that_fails_costs_that_part_alone():
    answer = Collected()
    with part(answer, "one"):
        raise EngineUnavailable("no such library")
    with part(answer, "two"):
        raise ZeroDivisionError("no\nparts")
    with part(answer, "three", ZeroDivisionError):
        raise ZeroDivisionError("no units")
    with part(answer, "four"):
        answer.row(case="four")
    assert [one["what"] for one in answer.absent] == ["one", "three"]
    assert answer.absent[0]["why"] == "no such library"
    assert answer.said[0].startswith("two: ZeroDivisionError: no parts (test_gpu_check.py:")
    assert answer.rows == [{"case": "four"}]


def test_after_the_device_is_lost_no_further_part_is_tried(monkeypatch):
    torch = SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: True, synchronize=lambda: None))
    monkeypatch.setitem(sys.modules, "torch", torch)
    answer = Collected()
    with part(answer, "one"):
        raise RuntimeError("refused")
    assert len(answer.said) == 1
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: (_ for _ in ()).throw(RuntimeError("illegal address")))
    with pytest.raises(RuntimeError, match="refused"), part(answer, "two"):
        raise RuntimeError("refused")


def gone(process: int) -> bool:
    """Within a second: killed, and perhaps not yet fetched by its new parent."""
    for _ in range(20):
        try:
            state = Path(f"/proc/{process}/stat").read_text("ascii").rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_when_the_time_is_used_up_the_rest_is_listed():
    rows = run("good", "hanging", "later", minutes=2.5 / 60)
    assert rows["good"]["status"] == "passed"
    assert rows["hanging"]["status"] == "could not run"
    assert "minutes given are used up; --resume goes on" in rows["hanging"]["why"]
    assert rows["later"]["status"] == "could not run"


def test_what_was_settled_is_not_run_again(tmp_path):
    first = run("good", "wrong", "lacking")
    results.write(tmp_path / "r.json", results.result(first.values(), ()))
    done = runner.settled(tmp_path / "r.json")
    assert [row["case"] for row in done] == ["good", "wrong"]
    again = run("good", "wrong", "lacking", done=done)
    assert again["good"] == first["good"]  # the same process number: it was not asked again
    assert again["lacking"]["status"] == "could not run"
    assert runner.settled(tmp_path / "nothing.json") == []


def test_figures_of_checks_that_are_not_run_again_are_known():
    later = next(c for c in gpu_check_samples.CHECKS if c.name == "later")
    others = [{"case": "good", "status": "passed", "figures": {"seed": 11}}]
    plan = runner.Plan((MODULE,), [later], others=others)
    rows = runner.run(plan, Setup(), runner.Clock(None), lambda rows: None, lambda row: None)
    assert rows[0]["figures"]["what good found"] == 11


def test_checks_that_cannot_be_imported_are_one_that_says_why():
    (check,) = catalogue.of_module("gpu_check_that_is_not_there")
    assert check.name == "gpu_check_that_is_not_there.import"
    with pytest.raises(CannotRun, match="cannot be imported: No module named"):
        check.run(Answer(lambda word, content: None), Setup())


def test_the_list_needs_neither_torch_nor_triton():
    script = "import sys; sys.modules.update(dict.fromkeys(('torch', 'triton', 'onnx', 'onnxruntime'))); "
    script += "from benchmarks.gpu_check import catalogue; "
    script += "print(len([c for c in catalogue.checks() if not c.name.endswith('.import')]))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert int(ran.stdout) == len(catalogue.checks()), ran.stderr


def test_a_plugins_graph_needs_no_matplotlib():
    script = "import sys; sys.modules['matplotlib'] = None; from benchmarks.gpu_check import context; "
    script += "print(len(context.head('fp32', 1, 1, 5, (3, 4))) > 1000)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert ran.stdout == "True\n", ran.stderr


def test_the_most_valuable_come_first_and_words_choose():
    every = gpu_check_samples.CHECKS
    assert runner.chosen(every, (), quick=False)[0].name == "first"
    assert next(c.name for c in runner.chosen(every, ("a",), quick=False)) == "raising"
    assert "slow" not in [c.name for c in runner.chosen(every, (), quick=True)]
    with pytest.raises(SettingsError, match=r"--only nonsense.*good"):
        runner.chosen(every, ("nonsense",), quick=False)


@pytest.mark.parametrize(
    ("statuses", "missing", "wanted"),
    [
        (("passed", "passed"), [], 0),
        (("passed", "could not run"), [], runner.INCOMPLETE),
        (("passed",), [{"what": "a", "why": "b"}], runner.INCOMPLETE),
        (("could not run", "failed"), [], cli.FAILED),
    ],
)
def test_exit_status(statuses, missing, wanted):
    assert runner.status({"status": status, "missing": missing} for status in statuses) == wanted


def test_numbers_of_every_kind_become_json():
    made = plain({"a": np.float32(1.5), "b": [np.int64(3), float("nan")], "c": Path("x"), "d": (True, None)})
    assert json.loads(json.dumps(made, allow_nan=False)) == {"a": 1.5, "b": [3, "nan"], "c": "x", "d": [True, None]}


def test_every_check_has_its_own_name_and_knows_what_it_needs():
    every = catalogue.checks()
    names = [check.name for check in every]
    assert len(set(names)) == len(names)
    assert {need for check in every for need in check.needs} <= set(needs.NEEDS)
    assert all(check.limit > 0 and check.title for check in every)


def test_list_names_the_checks(capsys):
    assert command.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(check.name in listed for check in catalogue.checks())


@pytest.mark.skipif(here is not None, reason="a GPU is here")
def test_without_a_gpu_everything_is_named_with_the_reason(tmp_path, capsys):
    out = tmp_path / "none.json"
    assert command.main(["--only", "machine", "rates", "kernels.attention", "--out", str(out)]) == runner.INCOMPLETE
    rows = results.of_kind(results.read(out), "gpu_check")
    assert {row["status"] for row in rows} == {"could not run"}
    assert all("NVIDIA driver" in row["why"] for row in rows)
    assert len(results.read(out)["gaps"]) == len(rows)
    page = out.with_suffix(".md").read_text("utf-8")
    assert "0 passed, 0 failed" in page
    assert "kernels.attention" in page
    assert "no NVIDIA driver" in capsys.readouterr().out


@pytest.mark.skipif(here is not None, reason="a GPU is here")
def test_only_keeps_the_other_records_of_the_file(tmp_path):
    out = tmp_path / "kept.json"
    row = {**record("kernels.pool"), "status": "passed", "case": "speed.gather"}
    results.write(out, results.result([row], ()))
    command.main(["--only", "machine", "--out", str(out)])
    assert [r["case"] for r in results.read(out)["records"]] == ["machine", "speed.gather"]


RUN = """
import sys
from benchmarks.gpu_check import catalogue, __main__ as command
catalogue.MODULES = ("gpu_check_samples",)
sys.exit(command.main(sys.argv[1:]))
"""


def command_line(*arguments: str) -> subprocess.Popen:
    """The command itself, over the samples."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen([sys.executable, "-c", RUN, *arguments], env=environment, stdout=subprocess.PIPE, text=True)


def test_a_run_that_is_killed_leaves_a_whole_file_and_is_resumed(tmp_path):
    out = tmp_path / "gpu.json"
    killed = command_line("--only", "good", "hanging", "later", "--out", str(out))
    for _ in range(200):
        if out.exists():
            break
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait(10)
    assert [(r["case"], r["status"]) for r in results.read(out)["records"]] == [("good", "passed")]
    again = command_line("--only", "good", "hanging", "later", "--out", str(out), "--resume")
    told = again.communicate(timeout=60)[0]
    assert again.returncode == cli.FAILED
    assert "kept          good: passed" in told
    statuses = {r["case"]: r["status"] for r in results.read(out)["records"]}
    assert statuses == {"good": "passed", "hanging": "failed", "later": "passed"}
    assert "2 passed, 1 failed, 0 could not run" in told


def record(name: str) -> dict:
    from benchmarks.gpu_check.check import record as make

    return make(Check(name, "a title", gpu_check_samples.good))


def test_a_page_shows_rows_of_different_columns_and_says_what_it_leaves_out():
    rows = [{"case": "a", "µs": 12.3456}, {"case": "b", "right": False}, *({"case": str(i)} for i in range(99))]
    table = section.table(rows)
    assert table.head == ["case", "µs", "right"]
    assert table.rows[0] == ("a", "12.35", "")
    assert table.rows[1] == ("b", "", "NO")
    assert table.rows[-1][0] == "… 41 more in the JSON"


def test_the_report_shows_what_was_checked(all_of_them, tmp_path):
    command.write(tmp_path / "gpu.json", results.result((), ()), list(all_of_them.values()))
    assert report.main([str(tmp_path / "gpu.json"), "--out", str(tmp_path / "pages")]) == 0
    for name in ("report.md", "report.html"):
        page = (tmp_path / "pages" / name).read_text("utf-8")
        for words in (
            "the sum is off by 3",
            "SIGABRT",
            "compute capability 1.0 has no matrix units",
            "its library is not",
        ):
            assert words in page


def test_what_is_not_installed_is_known_without_a_process(monkeypatch):
    monkeypatch.setitem(needs.PACKAGES, "triton", ("no_such_module", "triton"))
    monkeypatch.setattr(runner, "Worker", lambda *arguments: pytest.fail("a process was started"))
    check = Check("one", "a title", gpu_check_samples.good, ("torch-cuda", "triton"))
    plan = runner.Plan((MODULE,), [check])
    (row,) = runner.run(plan, Setup(), runner.Clock(None), lambda rows: None, lambda row: None)
    assert (row["status"], row["why"]) == ("could not run", "the Python package triton is not installed")
    assert needs.absent(("gpu", "fork")) == ""


def test_stored_labels_are_compared_quickly_too():
    compared = []
    for name in runtime.QUICK:
        stored = np.load(runtime.FIXTURES / f"golden_{name}.npz")
        size = tuple(map(int, stored["image_hw"]))
        compared += [
            label for label, _, labels in runtime.ways(RECIPES[name], stored, size, True) if labels is not None
        ]
    assert compared == ["stored slide", "stored msflip"]


def test_a_library_that_does_not_load_is_a_reason(monkeypatch):
    def load(name):
        raise OSError(f"lib{name}.so: cannot open shared object file")

    monkeypatch.setattr(needs.importlib, "import_module", load)
    for need, package in (("torch-cuda", "torch"), ("onnxruntime-cuda", "onnxruntime")):
        said = f"the Python package {package} cannot be imported: OSError: lib{package}.so: cannot open"
        assert needs.NEEDS[need]().startswith(said)


def test_answers_are_one_line_each():
    found: list = []
    Answer(lambda word, content: found.append((word, content))).wrong("two\n lines")
    assert found == [("wrong", "two lines")]
