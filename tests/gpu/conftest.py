"""Tests on a GPU, marked ``gpu(case, order, limit, slow=False, seconds=…)``: one process each, in order of value.

``case`` names the record in the result file, ``limit`` is in seconds, ``seconds`` an estimate for the plan, ``slow``
cases are left out with --quick. Every test's result is written when it ends, so that a run that is cut short is worth
what it has done: docs/gpu.md.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import random
import re
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import pytest_forked

from benchmarks import results
from isnet_trt.cuda.gpu import Gpu, probe_gpu
from isnet_trt.errors import EngineUnavailable
from tests.gpu.record import FAILED, MISSING, PASSED, CannotRun, Record, described
from tests.gpu.target import Target

ESTIMATES = results.FOLDER / "nvidia-h100-80gb-hbm3.json"
"""The record whose seconds are the time estimates."""
OUTCOMES = {"passed": PASSED, "failed": FAILED, "skipped": MISSING}
DRY_GPU = Gpu("no GPU (dry run)", "9.0", "CUDA 13.0", 132)
GRACE = 15
"""Seconds after a test's limit at which its process ends even if a library keeps Python's lock."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpu", "tests on a GPU (docs/gpu.md)")
    group.addoption("--gpu-out", type=Path, metavar="FILE", help="JSON (default: benchmarks/results/<gpu>.json)")
    group.addoption("--gpu-plan", action="store_true", help="print the order with time estimates, and run nothing")
    group.addoption("--gpu-dry-run", action="store_true", help="run every test on doubles, without a GPU")
    group.addoption("--quick", action="store_true", help="fewer cases and sizes")
    group.addoption("--resume", action="store_true", help="keep what passed or failed in FILE, run the rest")
    group.addoption("--minutes", type=float, metavar="N", help="start no further test after N minutes")
    group.addoption("--seed", type=int, help="of all random inputs (default: another in every run; it is recorded)")
    group.addoption("--work", type=Path, metavar="DIR", help="keep compiled kernels and bundles in DIR")
    group.addoption("--bundle", nargs="+", type=Path, default=[], metavar="DIR", help="bundles to check as well")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Suite(config), "gpu-suite")


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Where the test writes what it finds."""
    suite = request.config.pluginmanager.get_plugin("gpu-suite")
    return Record(suite.path("jsonl"), suite.figures())


@pytest.fixture
def target(request: pytest.FixtureRequest) -> Target:
    """This machine's GPU, with the kernels compiled for it."""
    return request.config.pluginmanager.get_plugin("gpu-suite").target


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Any:
    """A test has also failed where it recorded something wrong."""
    if not marker(pyfuncitem):
        return (yield)
    record = pyfuncitem.funcargs["record"]
    # What libraries write, and the stack of a call that crashes or hangs, is for the parent.
    log = pyfuncitem.config.pluginmanager.get_plugin("gpu-suite").path("log")
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
    faulthandler.enable(2)
    faulthandler.dump_traceback_later(marker(pyfuncitem).args[2] + GRACE, exit=True, file=2)
    try:
        with stand_ins(pyfuncitem):
            value = yield
    except (CannotRun, EngineUnavailable) as error:
        pytest.skip(" ".join(str(error).split()))
    except Exception as error:
        record.fail(described(error))
        raise
    finally:
        faulthandler.cancel_dump_traceback_later()
    if record.wrong:
        pytest.fail("\n".join(record.wrong), pytrace=False)
    return value


def stand_ins(item: pytest.Function) -> contextlib.AbstractContextManager[None]:
    """What takes the place of a GPU in a dry run; nothing otherwise."""
    if not item.config.pluginmanager.get_plugin("gpu-suite").dry:
        return contextlib.nullcontext()
    from tests.gpu.dry_run import doubles  # it imports torch: in the processes of the tests only

    return doubles(item.module, item.funcargs)


def marker(item: pytest.Item) -> Any:
    return item.get_closest_marker("gpu")


def title(item: pytest.Item) -> str:
    return (item.function.__doc__ or item.name).splitlines()[0].rstrip(".")  # type: ignore[attr-defined]


def probe() -> tuple[Gpu | None, str]:
    """`probe_gpu` in a child process: a process that has called the driver cannot be forked to use it."""
    if "fork" not in multiprocessing.get_all_start_methods():
        return None, "the tests on a GPU need processes that fork"
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(probe_gpu).result()


class Suite:
    """Order, choice and records of the tests marked ``gpu``."""

    def __init__(self, config: pytest.Config) -> None:
        def option(name: str, default: Any = None) -> Any:
            return config.getoption(name, default) or default  # unknown where pytest was given other paths

        self.resume, self.minutes, self.plan_only = option("--resume"), option("--minutes"), option("--gpu-plan")
        self.out, self.quick = option("--gpu-out"), bool(option("--quick"))
        self.dry = bool(option("--gpu-dry-run"))
        self._temporary = None if option("--work") else tempfile.mkdtemp(prefix="isnet_trt_gpu")
        folder = Path(self._temporary or option("--work")).resolve()
        seed = random.SystemRandom().randrange(2**31) if option("--seed") is None else option("--seed")
        self.target = Target(folder, self.quick, seed, [b.resolve() for b in option("--bundle", [])])
        self.records: dict[str, dict[str, Any]] = {}
        self.order: list[str] = []
        self.lines: list[str] = []
        self._reports: dict[str, list[pytest.TestReport]] = {}
        self._items: dict[str, pytest.Item] = {}
        self._about: dict[str, Any] = {}
        self._start = time.monotonic()

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Let -k choose by the names of the cases."""
        if marker(item):
            item.extra_keyword_matches.add(marker(item).args[0])

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Order the tests that -m and -k have left, and skip or deselect what is not to run."""
        chosen = sorted((item for item in items if marker(item)), key=lambda item: marker(item).args[1])
        if not chosen:
            return
        others = [item for item in items if not marker(item)]
        selected = [item for item in chosen if not (self.quick and marker(item).kwargs.get("slow"))]
        self.order = [marker(item).args[0] for item in selected]
        gpu, reason = (DRY_GPU, "") if self.dry else probe()
        if self.plan_only:
            self._plan(selected)
            selected = []
        elif gpu is None:
            for item in selected:
                item.add_marker(pytest.mark.skip(reason=reason))
        else:
            selected = self._prepare(selected, gpu)
        config.hook.pytest_deselected(items=[item for item in chosen if item not in selected])
        items[:] = [*others, *selected]

    def _prepare(self, items: list[pytest.Item], gpu: Gpu) -> list[pytest.Item]:
        """The items to run on ``gpu``, and the records of an earlier run that stay."""
        name = re.sub("[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
        # Never among the committed results, which are of GPUs.
        self.out = self.out or (Path(tempfile.gettempdir()) if self.dry else results.FOLDER) / f"{name}.json"
        self._about = results.result((), (), seed=self.target.seed, **({"dry_run": True} if self.dry else {}))
        cases = {marker(item).args[0] for item in items}
        if self.out.is_file():
            self.records = {row["case"]: row for row in results.of_kind(results.read(self.out), "gpu_check")}
            keep = {case for case, row in self.records.items() if row["status"] in (PASSED, FAILED)}
            if not self.resume:
                keep -= cases  # those of tests that were not chosen stay
            self.records = {case: row for case, row in self.records.items() if case in keep}
        for item in items:
            self._items[item.nodeid] = item
            item.add_marker(pytest.mark.forked)
            item.add_marker(pytest.mark.timeout(marker(item).args[2], method="signal", func_only=True))
        return [item for item in items if marker(item).args[0] not in self.records]

    def _plan(self, items: list[pytest.Item]) -> None:
        rows = results.of_kind(results.read(ESTIMATES), "gpu_check")
        seconds = {row["case"]: row["seconds"] for row in rows if row["status"] != MISSING}
        total, late = 0.0, []
        for item in items:
            case, _, limit = marker(item).args
            expected = marker(item).kwargs.get("seconds", limit)
            if self.minutes and total + seconds.get(case, expected) > 60 * self.minutes:
                late.append(case)
                continue
            total += seconds.get(case, expected)
            estimate = f"{seconds[case]:6.1f} s" if case in seconds else f"{'~<'[expected == limit]}{expected:5.0f} s"
            self.lines.append(f"{case:34} {estimate}  limit {limit:4.0f} s  {title(item)}")
        self.lines.append(
            f"{len(items) - len(late)} tests, at most {total / 60:.0f} minutes ({total:.0f} s): seconds of an H100 "
            "(--quick), ~ estimates, < limits"
        )
        if late:
            self.lines.append(f"beyond {self.minutes:g} minutes: {', '.join(late)}")

    def path(self, kind: str) -> Path:
        """Where the process of a test writes what it finds ("jsonl") and what libraries say ("log")."""
        self.target.folder.mkdir(parents=True, exist_ok=True)
        return self.target.folder / f"test.{kind}"

    def figures(self) -> dict[str, Any]:
        """Case -> figures of the tests that have run."""
        return {case: row["figures"] for case, row in self.records.items()}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if nodeid in self._items:
            for kind in ("jsonl", "log"):
                self.path(kind).unlink(missing_ok=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.nodeid in self._items:
            self._reports.setdefault(report.nodeid, []).append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Write the record of a test as soon as it has ended."""
        if item := self._items.get(nodeid):
            log = self.path("log").read_text("utf-8", "replace") if self.path("log").is_file() else ""
            row = make_row(item, self._reports.pop(nodeid, []), Record.load(self.path("jsonl")), log)
            self.records[row["case"]] = row
            self._write(())
            if self.dry:
                limit = marker(item).args[2]
                self.lines.append(
                    f"{row['case']:34} {row['seconds']:6.1f} s of {limit} s  {row['status']}: {row['why']}"
                )
            if self.minutes and time.monotonic() - self._start > 60 * self.minutes:
                item.session.shouldstop = f"the {self.minutes:g} minutes are used up; --resume goes on"

    def _write(self, gaps: Any) -> None:
        places = {case: number for number, case in enumerate(self.order)}
        rows = sorted(self.records.values(), key=lambda row: places.get(row["case"], len(places)))
        lacking = [results.gap(row["case"], row["why"]) for row in rows if row["status"] == MISSING]
        lacking += [results.gap(f"{row['case']}: {m['what']}", m["why"]) for row in rows for m in row["missing"]]
        results.write(self.out, {**self._about, "records": rows, "gaps": [*lacking, *gaps]})

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._about:
            rest = [case for case in self.order if case not in self.records]
            self._write([results.gap(case, str(session.shouldstop or "the run was cut short")) for case in rest])
        if self.plan_only:
            session.exitstatus = pytest.ExitCode.OK
        if self._temporary:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for line in [*self.lines, *([f"written: {self.out}"] if self._about else [])]:
            terminalreporter.write_line(line)


def make_row(item: pytest.Item, reports: list[pytest.TestReport], record: Record, log: str) -> dict[str, Any]:
    """The record of one test: its outcome is that of its worst phase."""
    outcomes = [report.outcome for report in reports] or ["failed"]
    worst = next((o for o in ("failed", "skipped") if o in outcomes), "passed")
    why = "; ".join(record.wrong)
    if worst != "passed" and not why:
        why = reason(next((r for r in reports if r.outcome == worst), None), log)
    return {
        "kind": "gpu_check", "case": marker(item).args[0], "title": title(item), "status": OUTCOMES[worst], "why": why,
        "seconds": round(sum(report.duration for report in reports), 2), "figures": record.figures,
        "rows": record.rows, "missing": record.missing,
    }  # fmt: skip


def reason(report: pytest.TestReport | None, log: str, most: int = 900) -> str:
    """Why a test was skipped, or how it or its process ended, with the end of what libraries wrote."""
    if report is not None and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    frames = ("/site-packages/", "/lib/python", "Extension modules:")
    lines = [line for line in log.splitlines() if not any(text in line for text in frames)]
    ended = "its process ended without a report" if report is None else str(report.longrepr)
    return " ".join([*ended.split()[-60:], *" ".join(lines).split()])[-most:]


def serialize(report: pytest.TestReport) -> dict[str, Any]:
    """pytest-forked 1.7.5 does not know the NodeId that reports of pytest 9.1 and later hold."""
    fields = _serialize(report)
    fields.pop("_id", None)
    return {**fields, "nodeid": report.nodeid}


_serialize = pytest_forked.serialize_report
pytest_forked.serialize_report = serialize
