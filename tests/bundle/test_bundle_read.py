"""Opening bundles: every way in which a folder can be no bundle, or no longer one."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_bundle import manifest, write_bundle

from isnet_trt.bundle import ENGINE, MANIFEST, ONNX, Bundle, FileInfo, files, read_bundle, sha256
from isnet_trt.engines.info import EngineInfo
from isnet_trt.errors import BundleError


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "small")


def _edit(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle.folder / MANIFEST
    data = json.loads(path.read_text("utf-8"))
    change(data)
    path.write_text(json.dumps(data), "utf-8")


def _list(bundle: Bundle, name: str, content: bytes) -> Path:
    """A file that the manifest lists with right size and digest."""
    path = bundle.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    _edit(bundle, lambda data: data["files"].update({name: {"bytes": len(content), "sha256": sha256(path)}}))
    return path


def _refused(bundle: Bundle, *said: str, verify: bool = True) -> None:
    with pytest.raises(BundleError) as caught:
        read_bundle(bundle.folder, verify)
    for text in said:
        assert text in str(caught.value)


def test_reads_what_was_written(bundle: Bundle) -> None:
    again = read_bundle(str(bundle.folder))
    assert again.manifest == bundle.manifest
    assert again.manifest == manifest(files=again.manifest.files)
    assert again.path(ONNX).stat().st_size == again.manifest.files[ONNX].bytes
    with pytest.raises(BundleError, match=r"holds no model\.engine; its files: model\.onnx"):
        again.path(ENGINE)


def test_reads_files_in_folders(bundle: Bundle) -> None:
    _list(bundle, "kernels/sm_80/attention.ptx", b"// ptx")
    assert read_bundle(bundle.folder).path("kernels/sm_80/attention.ptx").read_bytes() == b"// ptx"


def test_a_link_to_a_bundle_opens(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle.folder)
    assert read_bundle(tmp_path / "current").manifest == bundle.manifest


def test_changed_byte(bundle: Bundle) -> None:
    path = bundle.path(ONNX)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    _refused(bundle, str(path), "changed after the bundle was built")
    assert read_bundle(bundle.folder, verify=False).manifest == bundle.manifest


def test_truncated_file(bundle: Bundle) -> None:
    path = bundle.path(ONNX)
    os.truncate(path, path.stat().st_size - 1)
    for verify in (True, False):
        _refused(bundle, str(path), "copied in part?", verify=verify)


def test_missing_file(bundle: Bundle) -> None:
    bundle.path(ONNX).unlink()
    for verify in (True, False):
        _refused(bundle, str(bundle.folder / ONNX), "is missing", verify=verify)


def test_other_files_are_let_be_and_never_read(bundle: Bundle) -> None:
    """Notes, a server's configuration, what file managers leave, links, FIFOs, a folder without permission."""
    for name in ("README.md", "config.pbtxt", "Thumbs.db", ".DS_Store", "kernels/extra.ptx", "notes/weights.pkl"):
        (bundle.folder / name).parent.mkdir(exist_ok=True)
        (bundle.folder / name).touch()
    (bundle.folder / "link").symlink_to("nowhere")
    os.mkfifo(bundle.folder / "pipe")
    (bundle.folder / "closed").mkdir(0)
    again = read_bundle(bundle.folder)
    assert again.manifest == bundle.manifest
    names = [".DS_Store", "README.md", "Thumbs.db", "config.pbtxt", "kernels/extra.ptx", "link", "notes/weights.pkl"]
    assert again.unlisted() == [*names, "pipe"]


@pytest.mark.parametrize("engine", [None, EngineInfo("tensorrt", "10.13.3.9", ENGINE)])
def test_unlisted_network_or_engine(tmp_path: Path, engine: EngineInfo | None) -> None:
    bundle = write_bundle(tmp_path / "small", engine)
    name = engine.file if engine else ONNX
    (bundle.folder / name).unlink()
    _edit(bundle, lambda data: data["files"].pop(name))
    _refused(bundle, MANIFEST, f"does not list {name}")


@pytest.mark.parametrize(
    "name",
    [
        "../small.txt",
        "kernels/../../small.txt",
        "/etc/hostname",
        "./model.onnx",
        "kernels//a.ptx",
        "..",
        ".",
        "",
        "a\\b",
        "C:a",
        "a\nb",
        MANIFEST,
    ],
)
def test_path_escape(bundle: Bundle, name: str) -> None:
    (bundle.folder.parent / "small.txt").touch()
    empty = {"bytes": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}
    _edit(bundle, lambda data: data["files"].update({name: empty}))
    _refused(bundle, repr(name), "no file of a bundle", verify=False)


def test_symbolic_links(bundle: Bundle, tmp_path: Path) -> None:
    real = shutil.move(bundle.path(ONNX), tmp_path / "elsewhere.onnx")
    bundle.path(ONNX).symlink_to(real)
    _refused(bundle, str(bundle.folder / ONNX), "symbolic link", verify=False)


def test_links_of_folders(bundle: Bundle, tmp_path: Path) -> None:
    _list(bundle, "kernels/a.ptx", b"// ptx")
    shutil.move(bundle.folder / "kernels", tmp_path / "kernels")
    (bundle.folder / "kernels").symlink_to(tmp_path / "kernels")
    _refused(bundle, "kernels", verify=False)


def test_folder_in_place_of_a_file(bundle: Bundle) -> None:
    bundle.path(ONNX).unlink()
    bundle.path(ONNX).mkdir()
    _refused(bundle, "not a plain file")


@pytest.mark.parametrize("target", ["inside", "outside", "itself", "nowhere"])
def test_manifest_that_is_a_link(bundle: Bundle, tmp_path: Path, target: str) -> None:
    path = bundle.folder / MANIFEST
    place = bundle.folder / "real.json" if target == "inside" else tmp_path / "real.json"
    path.rename(place)
    path.symlink_to({"itself": path, "nowhere": tmp_path / "absent"}.get(target, place))
    _refused(bundle, str(path), "it is a symbolic link", verify=False)


@pytest.mark.parametrize("name", [MANIFEST, ONNX])
@pytest.mark.parametrize("kind", ["fifo", "device", "socket"])
def test_special_files_are_not_opened(bundle: Bundle, name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO would be waited for, a device read without an end; the manifest says 0 bytes, as stat does."""
    _edit(bundle, lambda data: data["files"][ONNX].update(bytes=0))
    path = bundle.folder / name
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(bundle.folder)  # a socket's path may have 107 bytes
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(name)
    else:
        path.symlink_to("/dev/zero")
    _refused(bundle, str(path), verify=False)


def test_a_link_that_appears_after_the_check(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may turn a file into a link at any time; what was opened is what counts."""
    secret = tmp_path / "elsewhere.onnx"
    shutil.copy(bundle.path(ONNX), secret)
    real = files.open_regular

    def swap(path: Path, **options: bool) -> Any:
        if path.name == ONNX:
            path.unlink()
            path.symlink_to(secret)
        return real(path, **options)

    monkeypatch.setattr(files, "open_regular", swap)
    with pytest.raises(BundleError, match="symbolic link"):
        bundle.read(ONNX)


def test_read_gives_the_bytes_that_were_checked(bundle: Bundle) -> None:
    content = bundle.path(ONNX).read_bytes()
    assert bundle.read(ONNX) == content
    bundle.path(ONNX).write_bytes(content[:-1] + b"?")
    with pytest.raises(BundleError, match="changed after the bundle was built"):
        bundle.read(ONNX)
    with pytest.raises(BundleError, match=r"holds no model\.engine"):
        bundle.read(ENGINE)


def test_a_name_that_comes_a_million_times(bundle: Bundle) -> None:
    (bundle.folder / MANIFEST).write_text("{" + ",".join(['"a":1'] * 1_000_000) + "}")
    start = time.process_time()
    _refused(bundle, "'a' comes twice")
    assert time.process_time() - start < 60  # looking for the name took hours


@pytest.mark.parametrize("name", ["a" * 300, "a" * 5000, "a\0b", "\ud800"])
def test_names_that_the_system_refuses(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError):
        read_bundle(tmp_path / name)


@pytest.mark.parametrize("name", ["weights.pkl", "model.PTH", "kernels/x.pickle", "a.npz"])
def test_names_of_pickles(bundle: Bundle, name: str) -> None:
    _list(bundle, name, b"harmless")
    _refused(bundle, name, "never contains a pickle", verify=False)


class _Runs:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_under_another_name(bundle: Bundle, tmp_path: Path, protocol: int) -> None:
    path = _list(bundle, "notes.txt", pickle.dumps(_Runs(tmp_path / "ran"), protocol))
    _refused(bundle, str(path), "pickle")
    assert not (tmp_path / "ran").exists()


def test_archive_under_another_name(bundle: Bundle, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("data.pkl", b"")
    _list(bundle, "notes.txt", (tmp_path / "a.zip").read_bytes())
    _refused(bundle, "notes.txt", "archive")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is damaged"),
        ('{"schema_version": 1', "is damaged"),
        ('{"schema_version": NaN}', "NaN"),
        ('{"schema_version": 1, "schema_version": 2}', "'schema_version' comes twice"),
        ("[" * 100_000, "is damaged"),
        ("[]", "no JSON object"),
    ],
)
def test_broken_manifest(bundle: Bundle, text: str, said: str) -> None:
    (bundle.folder / MANIFEST).write_text(text, "utf-8")
    _refused(bundle, str(bundle.folder / MANIFEST), said)


def test_manifest_cut_anywhere(bundle: Bundle) -> None:
    path = bundle.folder / MANIFEST
    text = path.read_text("utf-8").rstrip()
    for length in range(0, len(text), 97):
        path.write_text(text[:length], "utf-8")
        _refused(bundle, str(path))


def test_manifest_that_is_not_text(bundle: Bundle) -> None:
    (bundle.folder / MANIFEST).write_bytes(b"\xff\xfe\x00")
    _refused(bundle, MANIFEST, "is damaged")


def test_huge_manifest_is_not_read(bundle: Bundle) -> None:
    os.truncate(bundle.folder / MANIFEST, 1 << 40)
    _refused(bundle, "larger than any bundle manifest")


def test_newer_schema(bundle: Bundle) -> None:
    _edit(bundle, lambda data: data.update(schema_version=99, isnet_trt_version="7.0"))
    _refused(bundle, "schema version 99", "isnet_trt 7.0", "Upgrade isnet_trt")


def test_no_folder_and_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, said in (("absent", "not a folder"), ("file", "not a folder"), ("empty", "it has no bundle.json")):
        with pytest.raises(BundleError, match=said):
            read_bundle(tmp_path / name)


@pytest.mark.parametrize(("closed", "name"), [(MANIFEST, MANIFEST), (ONNX, ONNX), (".", MANIFEST), ("..", MANIFEST)])
def test_unreadable_file(open_folder: Path, closed: str, name: str) -> None:
    bundle = write_bundle(open_folder / "small")
    (bundle.folder / closed).chmod(0)
    # Root may read everything, so a child of root becomes nobody (after the imports: root's Python may be private).
    command = (
        "import os, sys, isnet_trt.bundle; os.geteuid() or os.setuid(65534);isnet_trt.bundle.read_bundle(sys.argv[1])"
    )
    arguments = [sys.executable, "-c", command, bundle.folder]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert "BundleError" in result.stderr, result.stderr
    assert f"{bundle.folder / name} cannot be read: Permission denied" in result.stderr


def test_reading_imports_no_engine_library(bundle: Bundle) -> None:
    command = (
        "import sys; from isnet_trt.bundle import read_bundle; read_bundle(sys.argv[1]);"
        "print([m for m in sys.modules if m.split('.')[0] in"
        " ('onnxruntime', 'tensorrt', 'tensorrt_rtx', 'torch', 'onnx', 'cuda', 'numpy')])"
    )
    result = subprocess.run([sys.executable, "-c", command, bundle.folder], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_digest_of_a_file_larger_than_one_piece(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"a" * 3_000_001)
    # sha256sum of 3000001 letters a
    line = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
    assert sha256(path) == line.split()[0]
    assert FileInfo(path.stat().st_size, sha256(path)).bytes == 3_000_001
