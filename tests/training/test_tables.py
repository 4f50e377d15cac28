"""The CSV tables of a run: whole or refused, and nothing lost when they cannot be read or written."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from permissions import as_nobody, reachable
from tiny_training import TINY, data, rows

from isnet_trt.errors import CheckpointError, SettingsError, TrainingError
from isnet_trt.training.run_folder import LATEST
from isnet_trt.training.tables import Table
from isnet_trt.training.trainer import Options, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
HEADER = ("iteration", "epoch", "miou")
WHOLE = "iteration,epoch,miou\n4,1,0.2500\n8,2,nan\n12,3,0.5000\n"


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path / "epochs.csv", HEADER)


def read(table: Table, content: str | bytes, last: int = 8, fewest: int = 0) -> list[list[str]]:
    table.path.write_bytes(content.encode() if isinstance(content, str) else content)
    try:
        return table.read(last, fewest)
    finally:
        assert table.path.read_bytes() == (content.encode() if isinstance(content, str) else content)


def test_rows_up_to_the_checkpoint_are_read(table: Table) -> None:
    expected = [["4", "1", "0.2500"], ["8", "2", "nan"]]
    assert read(table, WHOLE) == expected
    assert read(table, WHOLE, fewest=2) == expected
    assert read(table, WHOLE.replace("\n", "\r\n")) == expected  # saved by a spreadsheet
    assert read(table, "\ufeff" + WHOLE) == expected
    assert read(table, WHOLE, last=0) == read(table, "", last=0) == []
    table.path.unlink()
    assert table.read(8, 2) == []  # deleted by the user


@pytest.mark.parametrize("rest", ["12,3,0.50", "12", "16,4,0.1\ngarbage\n", "16,4\n", "13,4,x\n", "8,2"])
def test_what_a_killed_run_wrote_after_its_checkpoint_is_left_out(table: Table, rest: str) -> None:
    assert read(table, "iteration,epoch,miou\n4,1,0.25\n8,2,0.5\n" + rest) == [["4", "1", "0.25"], ["8", "2", "0.5"]]


DAMAGED: dict[str, tuple[str | bytes, str]] = {
    "another header": (WHOLE.replace("miou", "road"), "its columns are 'iteration,epoch,road', not"),
    "columns in another order": (WHOLE.replace("epoch,miou", "miou,epoch"), "its columns"),
    "no header": ("4,1,0.25\n8,2,0.5\n", "its columns"),
    "half a header": ("iteration,ep", "its columns are ''"),
    "empty": ("", "its columns"),
    "not UTF-8": (WHOLE.encode() + b"\xff\xfe\n", r"not UTF-8 text \(byte \d+\)"),
    "UTF-16": (WHOLE.encode("utf-16"), "not UTF-8"),
    "half a row": (WHOLE.replace("8,2,nan", "8,2"), r"row 3 \('8,2'\) is damaged"),
    "a cell too many": (WHOLE.replace("8,2,nan", "8,2,nan,1"), "row 3 .* is damaged"),
    "text for a figure": (WHOLE.replace("nan", "good"), "row 3 .* is damaged"),
    "an empty figure": (WHOLE.replace("nan", ""), "row 3 .* is damaged"),
    "a negative iteration": (WHOLE.replace("8,2", "-8,2"), "row 3 .* is damaged"),
    "a fraction for an iteration": (WHOLE.replace("8,2", "8.0,2"), "row 3 .* is damaged"),
    "a row twice": (WHOLE.replace("8,2", "4,2"), "row 3 .* in the wrong place"),
    "rows exchanged": ("iteration,epoch,miou\n8,2,0.5\n4,1,0.5\n", "row 3 .* in the wrong place"),
    "an empty line": (WHOLE.replace("8,2", "\n8,2"), "row 3 .* is damaged"),
    "NULs after a power cut": (b"iteration,epoch,miou\n4,1,0.25\n" + bytes(20) + b"\n", "damaged|no CSV"),
    "cut within a row that was whole": ("iteration,epoch,miou\n4,1,0.", r"rows are missing: it ends after iteration 0"),
    "an open quote": (WHOLE + '"12', "no CSV table"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_table_that_is_not_whole_is_refused_with_what_to_do(table: Table, case: str) -> None:
    content, message = DAMAGED[case]
    with pytest.raises(TrainingError, match=rf"epochs\.csv.*{message}.*restore the file, or move it away"):
        read(table, content)


def test_missing_rows_are_noticed_from_the_number_that_the_checkpoint_notes(table: Table) -> None:
    with pytest.raises(TrainingError, match="it ends after iteration 4"):
        read(table, "iteration,epoch,miou\n4,1,0.25\n", fewest=2)


def test_what_is_no_file_is_refused_at_once(table: Table) -> None:
    os.mkfifo(table.path)
    with pytest.raises(TrainingError, match="a FIFO"):
        table.read(8)
    with pytest.raises(TrainingError, match="a FIFO"):
        table.begin([])
    table.path.unlink()
    table.path.symlink_to("nowhere")
    with pytest.raises(TrainingError, match="a link to nowhere"):
        table.read(8)


def test_appending_follows_no_link(table: Table, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("mine")
    table.begin([])
    table.path.unlink()
    table.path.symlink_to(tmp_path / "other")
    with pytest.raises(TrainingError, match=r"epochs\.csv: a row cannot be appended"):
        table.append(4, [1, "0.5"])
    assert (tmp_path / "other").read_text() == "mine"


def trainer_of(out: Path, stop_after: int | None = None) -> Trainer:
    return Trainer(TINY, Options(out, epochs=2, batch=2, seed=5, workers=0, stop_after=stop_after), data())


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended after its first epoch."""
    out = tmp_path_factory.mktemp("run") / "out"
    trainer_of(out, stop_after=4).run()
    return out


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    out = tmp_path / "out"
    out.mkdir()
    for path in stopped.iterdir():
        if path.is_symlink():
            (out / path.name).symlink_to(path.readlink())
        elif path.is_file():
            (out / path.name).write_bytes(path.read_bytes())
    return out


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9] + b"\n")


@pytest.mark.parametrize("name", ["epochs.csv", "iterations.csv"])
@pytest.mark.parametrize("spoil", [cut, lambda p: p.write_bytes(b"\xff" * 9), lambda p: p.write_text("a\n")])
def test_a_spoilt_table_ends_the_resumption_and_both_stay(run: Path, name: str, spoil: Callable[[Path], Any]) -> None:
    spoil(run / name)
    before = content_of(run)
    resumed = trainer_of(run)
    resumed.resume()
    with pytest.raises(TrainingError, match=rf"{name} is not the record of this run"):
        resumed.run()
    assert content_of(run) == before
    (run / name).unlink()  # what the message advises
    resumed = trainer_of(run)
    resumed.resume()
    assert resumed.run()
    assert [row[0] for row in rows(run / name)[1:]][-1] == "8"


@pytest.mark.parametrize("name", ["epochs.csv", "iterations.csv"])
def test_a_table_without_its_last_row_is_noticed(run: Path, name: str) -> None:
    lines = (run / name).read_text().splitlines(keepends=True)
    (run / name).write_text("".join(lines[:-1]))
    resumed = trainer_of(run)
    resumed.resume()
    if name == "epochs.csv":  # the epoch's scoring is repeated
        resumed.run()
        assert [row[0] for row in rows(run / name)] == ["iteration", "4", "8"]
        return
    with pytest.raises(TrainingError, match="rows are missing"):
        resumed.run()


def test_the_figures_of_a_run_whose_checkpoints_are_gone_are_not_overwritten(run: Path) -> None:
    for path in run.glob("*.pth"):
        path.unlink()
    before = content_of(run)
    with pytest.raises(TrainingError, match="whose checkpoints are gone: move it away"):
        trainer_of(run).run()
    assert content_of(run) == before


@contextmanager
def full_disk(bytes_left: int = 0) -> Iterator[None]:
    """No file can be made longer than ``bytes_left``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_at_the_start_loses_nothing(run: Path, tmp_path: Path) -> None:
    with full_disk(), pytest.raises(TrainingError, match=r"iterations\.csv cannot be written"):
        trainer_of(tmp_path / "new").run()
    assert list((tmp_path / "new").iterdir()) == []
    before = content_of(run)
    resumed = trainer_of(run)
    resumed.resume()
    with full_disk(), pytest.raises(TrainingError, match=r"iterations\.csv cannot be written.*it is as it was"):
        resumed.run()
    assert content_of(run) == before


def test_a_disk_that_becomes_full_keeps_the_last_checkpoint_and_the_run_goes_on(run: Path) -> None:
    before = content_of(run)
    resumed = trainer_of(run)
    resumed.resume()
    with full_disk(20_000), pytest.raises(CheckpointError, match="could not be written: File too large"):
        resumed.run()
    weights = {name for name in before if name.endswith(".pth")}
    assert {path.name for path in run.glob("*.pth")} == weights
    assert {name: content_of(run)[name] for name in weights} == {name: before[name] for name in weights}
    again = trainer_of(run)
    again.resume()
    assert again.run()
    assert [row[0] for row in rows(run / "epochs.csv")] == ["iteration", "4", "8"]


def test_a_row_that_does_not_fit_on_the_disk(table: Table) -> None:
    table.begin([["4", "1", "0.2500"]])
    with full_disk(table.path.stat().st_size + 4), pytest.raises(TrainingError, match=r"epochs\.csv: a row cannot be"):
        table.append(8, [2, "0.5000"])
    assert table.iterations == [4]
    assert table.read(4) == table.read(8, 1) == [["4", "1", "0.2500"]]


def test_temporary_files_of_a_killed_run_are_swept(run: Path) -> None:
    (run / ".isnet~abc12").write_bytes(b"half a checkpoint")
    resumed = trainer_of(run)
    resumed.resume()
    resumed.run()
    assert not list(run.glob(".isnet~*"))


def test_out_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SettingsError, match=r"--out .*file"):
        trainer_of(tmp_path / "file").run()


def test_out_that_may_not_be_written(run: Path) -> None:
    before = content_of(run)
    resumed = trainer_of(run)
    resumed.resume()
    new = trainer_of(run / "below")
    with reachable(run.parent), as_nobody():
        with pytest.raises(SettingsError, match=r"--out .*out/below: the folder cannot be created \(Permission"):
            new.run()
        with pytest.raises((SettingsError, TrainingError), match=r"out.* cannot be written.*[Pp]ermission"):
            resumed.run()
    assert content_of(run) == before


def test_checkpoints_without_their_link(run: Path) -> None:
    """A run may be killed after a checkpoint and before its link; a link may lead to a file that was deleted."""
    (run / LATEST).unlink()
    resumed = trainer_of(run)
    assert resumed.files.occupied
    resumed.resume()
    assert resumed.iteration == 4
    for target in ("gone.pth", LATEST):
        (run / LATEST).symlink_to(target)
        with pytest.raises(CheckpointError, match=r"leads nowhere: .*ln -sfn checkpoints-epoch-1\.pth"):
            trainer_of(run).resume()
        (run / LATEST).unlink()
