"""Writing bundles: whole or not at all, whatever happens in between."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from children import PATIENCE
from small_bundle import manifest, save_model, write_bundle

from isnet_trt.bundle import MANIFEST, ONNX, check_target, draft, new_bundle, read_bundle, sha256
from isnet_trt.errors import BundleError

TESTS = Path(__file__).parents[1]


def _tree(folder: Path) -> dict[str, bytes | None]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def test_nothing_but_the_bundle_is_left(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "small")
    assert set(_tree(tmp_path)) == {"small", "small/bundle.json", "small/model.onnx"}
    assert bundle.manifest.files[ONNX].sha256 == sha256(bundle.folder / ONNX)
    umask = os.umask(0)
    os.umask(umask)
    assert bundle.folder.stat().st_mode & 0o777 == 0o777 & ~umask


def test_missing_parents_are_made(tmp_path: Path) -> None:
    assert write_bundle(tmp_path / "a" / "b" / "small").folder.is_dir()


def test_missing_parents_go_again(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_bundle(tmp_path / "a" / "b" / "small"):
        raise RuntimeError
    assert _tree(tmp_path) == {}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    assert write_bundle(tmp_path / "small").path(ONNX).is_file()


def test_relative_and_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("small", "../other", "[a]*? é"):
        write_bundle(Path(name))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here", "other"]
    assert sorted(p.name for p in (tmp_path / "here").iterdir()) == ["[a]*? é", "small"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling"])
def test_what_is_no_bundle_is_left_alone(tmp_path: Path, kind: str, force: bool) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "folder":
        out.mkdir()
        (out / "thesis.tex").write_text("mine")
    elif kind == "link":
        out.symlink_to(write_bundle(tmp_path / "real").folder)
    else:
        out.symlink_to(tmp_path / "absent")
    before = _tree(tmp_path)
    with pytest.raises(BundleError, match=f"{out} (exists and is not a bundle|is a symbolic link)"):
        write_bundle(out, force=force)
    assert _tree(tmp_path) == before


def test_an_old_bundle_needs_force(tmp_path: Path) -> None:
    write_bundle(tmp_path / "small", precision="old")
    with pytest.raises(BundleError, match="use --force"):
        write_bundle(tmp_path / "small", precision="new")
    assert read_bundle(tmp_path / "small").manifest.precision == "old"
    assert write_bundle(tmp_path / "small", force=True, precision="new").manifest.precision == "new"
    assert set(_tree(tmp_path)) == {"small", "small/bundle.json", "small/model.onnx"}


def test_force_does_not_take_other_peoples_files(tmp_path: Path) -> None:
    write_bundle(tmp_path / "small")
    (tmp_path / "small" / "results").mkdir()
    (tmp_path / "small" / "results" / "labels.png").write_text("mine")
    with pytest.raises(BundleError, match=r"holds more than a bundle \(results/labels.png\)"):
        write_bundle(tmp_path / "small", force=True)
    assert (tmp_path / "small" / "results" / "labels.png").read_text() == "mine"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"files": []}'])
def test_force_does_not_take_what_only_looks_like_a_bundle(tmp_path: Path, text: str) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=str(tmp_path / "small" / MANIFEST)):
        check_target(tmp_path / "small", True)


def test_force_replaces_a_damaged_bundle(tmp_path: Path) -> None:
    write_bundle(tmp_path / "small").path(ONNX).unlink()
    assert write_bundle(tmp_path / "small", force=True).path(ONNX).is_file()


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), SystemExit(3), FileNotFoundError(2, "x")])
@pytest.mark.parametrize("finished", [False, True])
def test_an_exception_leaves_everything_as_it_was(tmp_path: Path, error: BaseException, finished: bool) -> None:
    write_bundle(tmp_path / "small", precision="old")
    before = _tree(tmp_path)

    def write() -> None:
        with new_bundle(tmp_path / "small", force=True) as new:
            save_model(new.folder / ONNX)
            if finished:
                new.finish(manifest())
            raise error

    with pytest.raises(type(error)) as caught:
        write()
    assert caught.value is error
    assert _tree(tmp_path) == before


def test_an_unfinished_draft_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not finished"), new_bundle(tmp_path / "small") as new:
        save_model(new.folder / ONNX)
    assert _tree(tmp_path) == {}


def test_numpy_numbers_in_the_report(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "small", parity={"max": np.float32(0.5), "pictures": np.int64(3)})
    assert bundle.manifest.parity == {"max": 0.5, "pictures": 3}


@pytest.mark.parametrize("change", [{"recipe": "\ud800"}, {"parity": {"large": 2**64}}, {"precision": 16}])
def test_what_could_not_be_opened_is_not_written(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(BundleError, match=f"'{next(iter(change))}"):
        write_bundle(tmp_path / "small", **change)
    assert _tree(tmp_path) == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_a_report_that_json_cannot_hold(tmp_path: Path, value: object) -> None:
    with pytest.raises(BundleError, match="cannot be written as JSON"):
        write_bundle(tmp_path / "small", parity={"max": value})
    assert _tree(tmp_path) == {}


def _spoil(folder: Path, kind: str) -> None:
    if kind == "link":
        (folder / "a.ptx").symlink_to(folder / ONNX)
    elif kind == "pickle":
        (folder / "a.ptx").write_bytes(b"\x80\x04N.")
    else:
        (folder / "a.pth").touch()


@pytest.mark.parametrize("kind", ["link", "pickle name", "pickle"])
def test_a_draft_with_links_or_pickles(tmp_path: Path, kind: str) -> None:
    def write() -> None:
        with new_bundle(tmp_path / "small") as new:
            save_model(new.folder / ONNX)
            _spoil(new.folder, kind)
            new.finish(manifest())

    with pytest.raises(BundleError, match=r"is a symbolic link|pickle"):
        write()
    assert _tree(tmp_path) == {}


def test_the_old_or_the_new_one_at_every_instant(tmp_path: Path) -> None:
    """A reader that opens the bundle all the time, while it is replaced, never finds less than a whole one."""
    out = tmp_path / "small"
    write_bundle(out, precision="0")
    if not _can_exchange(tmp_path):
        pytest.skip("this file system cannot exchange two folders in one step")
    assert draft._exchange(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "one" / "of other").is_dir()
    seen, stop = set(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            # One open folder is one bundle, however often the name changes hands meanwhile.
            folder = os.open(out, os.O_RDONLY)
            try:
                with os.fdopen(os.open(MANIFEST, os.O_RDONLY, dir_fd=folder)) as stream:
                    seen.add(json.load(stream)["precision"])
            except FileNotFoundError:  # that one was replaced and is being deleted: look again
                continue
            finally:
                os.close(folder)

    errors: list[BaseException] = []
    thread = threading.Thread(target=lambda: _catching(read, errors))
    thread.start()
    try:
        number = 0
        # Beyond thirty, until the reader has had its turn.
        while number < 30 or (len(seen) < 2 and thread.is_alive()):
            number += 1
            write_bundle(out, force=True, precision=str(number))
    finally:
        stop.set()
        thread.join()
    assert errors == []
    assert len(seen) > 1


def _can_exchange(base: Path) -> bool:
    """Whether the system exchanges two folders, asked without the code under test (renameat2, RENAME_EXCHANGE)."""
    one, other = base / "one", base / "other"
    for folder in (one, other):
        (folder / f"of {folder.name}").mkdir(parents=True)
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if rename is None or rename(-100, os.fsencode(one), -100, os.fsencode(other), 2):
        return False
    assert not rename(-100, os.fsencode(one), -100, os.fsencode(other), 2)
    return True


def _catching(work, errors: list[BaseException]) -> None:
    try:
        work()
    except BaseException as error:
        errors.append(error)


def test_replacing_without_an_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft, "_exchange", lambda one, other: False)
    write_bundle(tmp_path / "small", precision="old")
    assert write_bundle(tmp_path / "small", force=True, precision="new").manifest.precision == "new"
    assert set(_tree(tmp_path)) == {"small", "small/bundle.json", "small/model.onnx"}


@pytest.mark.parametrize("failing", [1, 2])
def test_the_old_one_comes_back_if_a_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    write_bundle(tmp_path / "small", precision="old")
    before = _tree(tmp_path)
    rename, calls = Path.rename, []

    def fails(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == failing:
            raise OSError(errno.EACCES, "Permission denied", str(self))
        return rename(self, target)

    monkeypatch.setattr(draft, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(BundleError, match="small cannot be written: Permission denied"):
        write_bundle(tmp_path / "small", force=True, precision="new")
    assert _tree(tmp_path) == before


def test_the_second_of_two_writers_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "small"

    def write() -> None:
        with new_bundle(out) as one:
            save_model(one.folder / ONNX)
            write_bundle(out, precision="other")
            one.finish(manifest())

    with pytest.raises(BundleError, match="already holds a bundle"):
        write()
    assert read_bundle(out).manifest.precision == "other"
    assert [p.name for p in tmp_path.iterdir()] == ["small"]


def test_two_writers_with_force_leave_one_whole_bundle(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def write(name: str) -> None:
        for number in range(10):
            write_bundle(tmp_path / "small", force=True, precision=f"{name}{number}")

    threads = [threading.Thread(target=lambda n=name: _catching(lambda: write(n), errors)) for name in "ab"]
    write_bundle(tmp_path / "small")
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert read_bundle(tmp_path / "small").manifest.precision in ("a9", "b9")
    assert [p.name for p in tmp_path.iterdir()] == ["small"]


_CHILD = """
import os, resource, signal, sys, time
from collections.abc import Iterator
from pathlib import Path
from small_bundle import manifest, save_model
from isnet_trt.bundle import new_bundle, ONNX
out, what = Path(sys.argv[1]), sys.argv[2]
if what == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
with new_bundle(out, force=True) as draft:
    save_model(draft.folder / ONNX)
    with (draft.folder / "model.onnx.data").open("wb") as stream:
        for i in range(64 if what != "wait" else 1 << 30):
            stream.write(bytes(1 << 16))
            if i == 8:
                print("writing", flush=True)
            if what == "wait":
                time.sleep(0.01)
    draft.finish(manifest())
"""


def _child(out: Path, what: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(out), what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.fixture(params=[False, True], ids=["new", "over an old one"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where a bundle is to be written: nothing there, or an old bundle."""
    if request.param:
        write_bundle(tmp_path / "small", precision="old")
    return tmp_path / "small"


def test_interrupt_in_the_middle_of_writing(place: Path) -> None:
    before = _tree(place.parent)
    child = _child(place, "wait")
    assert child.stdout is not None
    assert child.stdout.readline() == "writing\n"
    assert _tree(place.parent) != before
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=PATIENCE)
    assert "KeyboardInterrupt" in said
    assert _tree(place.parent) == before


def test_a_file_size_limit(place: Path) -> None:
    before = _tree(place.parent)
    _, said = _child(place, "limit").communicate(timeout=PATIENCE)
    assert f"BundleError: {place} cannot be written: File too large; nothing was left there" in said
    assert _tree(place.parent) == before


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    child = _child(tmp_path / "small", "wait")
    assert child.stdout is not None
    child.stdout.readline()
    (left,) = tmp_path.iterdir()
    # However old it looks, it is not swept while its writer lives …
    long_ago = time.time() - 3600
    os.utime(left, (long_ago, long_ago))
    write_bundle(tmp_path / "small")
    assert left.is_dir()
    # … and at once when it is dead, however young.
    os.utime(left)
    child.kill()
    child.communicate()
    write_bundle(tmp_path / "small", force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["small"]


def test_folders_of_writers_killed_before_they_locked_them(tmp_path: Path) -> None:
    young, old, used = (tmp_path / f".small.{name}.new" for name in ("young", "old", "used"))
    for folder in (young, old, used):
        folder.mkdir()
    (used / "mine").touch()
    os.utime(old, (0, 0))
    os.utime(used, (0, 0))
    (tmp_path / ".smaller.0.part").mkdir()  # of another bundle
    write_bundle(tmp_path / "small")
    assert {p.name for p in tmp_path.iterdir()} == {young.name, used.name, ".smaller.0.part", "small"}


def test_the_longest_name_that_the_system_takes(tmp_path: Path) -> None:
    for name in ("a" * 255, "é" * 127):
        assert write_bundle(tmp_path / name).folder.is_dir()
        write_bundle(tmp_path / name, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a" * 255, "é" * 127]
    with pytest.raises(BundleError, match="File name too long"):
        write_bundle(tmp_path / ("a" * 256))


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("old", [False, True])
def test_a_full_disk(tiny: Path, old: bool) -> None:
    if old:
        write_bundle(tiny / "small", precision="old")
    before = _tree(tiny)
    _, said = _child(tiny / "small", "full").communicate(timeout=PATIENCE)
    assert f"BundleError: {tiny / 'small'} cannot be written: No space left on device; nothing was left there" in said
    assert _tree(tiny) == before


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match=r"small cannot be written: File exists \(.*/file\)"):
        write_bundle(tmp_path / "file" / "small")
    with pytest.raises(BundleError, match="/proc/small cannot be written"):
        write_bundle(Path("/proc/small"))
