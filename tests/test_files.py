"""The one reader of regular files and the one writer: what is refused, what another process or a killed one leaves."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from children import run_python, start_python
from permissions import as_nobody, reachable

from isnet_trt import files
from isnet_trt.errors import ImageError, SettingsError
from isnet_trt.files import open_regular, regular_file_bytes, replace_link, replacing, write_file, write_output

TARGET = "labels.png"
OLD, NEW = b"old", b"new"


def names(folder: Path) -> list[str]:
    """The names in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


# --- reading


def test_regular_files_and_links_to_them_are_read(tmp_path: Path) -> None:
    """A link is followed, and the limit is the largest size that is read."""
    (tmp_path / "file").write_bytes(b"\r\n\x1a12")
    (tmp_path / "link").symlink_to("file")
    assert regular_file_bytes(tmp_path / "link", limit=5) == b"\r\n\x1a12"
    with open_regular(str(tmp_path / "file")) as stream:
        assert stream.read() == b"\r\n\x1a12"
    with pytest.raises(ImageError, match="too large: 5 bytes, the limit is 4"):
        regular_file_bytes(tmp_path / "file", 4, ImageError)


def special(folder: Path, kind: str) -> Path:
    """A path that is no regular file."""
    path = folder / kind
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)  # bind takes names of up to 107 bytes
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("kind", ["FIFO", "socket", "folder", "device"])
def test_special_files_are_refused_at_once(tmp_path: Path, kind: str) -> None:
    """A FIFO without a writer would wait for ever, a device give bytes for ever."""
    path = special(tmp_path, kind)
    with pytest.raises(SettingsError, match=f"{kind} cannot be read: it is a {kind}, not a regular file"):
        regular_file_bytes(path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "No such file"),
        ("x" * 300, "File name too long"),
        ("loop", "symbolic links"),
        ("a\0b", "the name cannot be used"),
        ("\ud800", "the name cannot be used"),
    ],
)
def test_the_reason_of_the_system_is_named(tmp_path: Path, name: str, reason: str) -> None:
    """Every name that cannot be opened is an error of the project, for reading and for writing alike."""
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SettingsError, match=reason):
        regular_file_bytes(tmp_path / name)
    if name not in ("missing", "loop"):  # these two can be written
        with pytest.raises(ImageError, match=reason):
            write_file(tmp_path / name, NEW, ImageError)
        assert names(tmp_path) == ["loop"]


# --- writing


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    """A temporary name longer than the final one would not fit."""
    path = tmp_path / ("x" * os.pathconf(tmp_path, "PC_NAME_MAX"))
    write_file(path, NEW)
    assert path.read_bytes() == NEW
    assert names(tmp_path) == [path.name]


def test_a_failed_block_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    """Also where the block has removed or renamed the temporary file itself."""
    path = tmp_path / TARGET
    path.write_bytes(OLD)
    with pytest.raises(TypeError), replacing(path) as temporary:
        temporary.write_bytes("no bytes")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError), replacing(path) as temporary:
        temporary.unlink()
    assert path.read_bytes() == OLD
    assert names(tmp_path) == [TARGET]


@pytest.mark.parametrize("kind", ["FIFO", "socket", "folder"])
def test_only_files_and_links_are_replaced(tmp_path: Path, kind: str) -> None:
    """The super-user would replace a device by a file, or the link ``/dev/stdout``; other links are replaced."""
    path = special(tmp_path, kind)
    with pytest.raises(SettingsError, match=f"{kind} cannot be written: it is a {kind}"):
        write_file(path, NEW)
    for device in (Path(os.devnull), special(tmp_path, "device")):
        with pytest.raises(SettingsError, match="it is a device"):
            write_file(device, NEW)
    for target in ("file", "nothing", "link"):
        (tmp_path / "file").write_bytes(OLD)
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(target)
        write_file(tmp_path / "link", NEW)
        assert (tmp_path / "link").read_bytes() == NEW
        assert (tmp_path / "file").read_bytes() == OLD
    assert not (tmp_path / "link").is_symlink()


def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the name was guessed: the file behind the link keeps its content."""
    victim, planted = tmp_path / "victim", tmp_path / ".isnet~aaaaa"
    victim.write_bytes(OLD)
    planted.symlink_to(victim)
    guesses = iter((planted.name, ".isnet~bbbbb"))
    monkeypatch.setattr(files, "_temporary_name", lambda: next(guesses))
    write_file(tmp_path / TARGET, NEW)
    assert victim.read_bytes() == OLD
    assert (tmp_path / TARGET).read_bytes() == NEW


def test_threads_write_one_file(tmp_path: Path) -> None:
    """Every write succeeds, and the file is one of those written, whole."""
    path = tmp_path / TARGET
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: write_file(path, bytes([i]) * 5000), range(200)))
    content = path.read_bytes()
    assert content == content[:1] * 5000
    assert names(tmp_path) == [TARGET]


_KILLED = """
import os, signal, sys
from pathlib import Path
from isnet_trt.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    print(flush=True)
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    """The next run in the folder removes the first; a file of another program stays."""
    path = tmp_path / TARGET
    path.write_bytes(OLD)
    other = tmp_path / ".isnet~config"
    other.write_bytes(OLD)
    with start_python("-c", _KILLED, path, "live", stdin=subprocess.PIPE) as living:
        assert living.stdout is not None
        living.stdout.readline()
        assert run_python("-c", _KILLED, path, "kill").returncode == -signal.SIGKILL
        assert len(names(tmp_path)) == 4
        write_file(tmp_path / "next", NEW)
        assert len(names(tmp_path)) == 4
        living.communicate()
    assert names(tmp_path) == [other.name, TARGET, "next"]
    assert path.read_bytes() == b"half"


def test_temporary_files_of_earlier_versions_are_swept_when_their_process_is_gone(tmp_path: Path) -> None:
    """They had the process in their names instead of a lock; files of other programs stay, and so do links."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    gone = [f".a_labels.png.{ended.pid}.tmp", f".last.pth.{ended.pid}.tmp", ".epochs.csv.9999999999.tmp"]
    stay = [f".a.png.{os.getpid()}.tmp", ".a.png.1.tmp", f".notes.txt.{ended.pid}.tmp", f"a.png.{ended.pid}.tmp"]
    for name in (*gone, *stay):
        (tmp_path / name).write_bytes(OLD)
    (tmp_path / f".link.png.{ended.pid}.tmp").symlink_to("nothing")
    write_file(tmp_path / "next", NEW)
    assert names(tmp_path) == sorted([*stay, f".link.png.{ended.pid}.tmp", "next"])


def test_a_result_may_go_into_a_pipe_or_a_device(tmp_path: Path) -> None:
    """``/dev/stdout`` is a link to whatever stdout is; an ordinary file is replaced as a whole."""
    script = "import sys; from pathlib import Path; from isnet_trt.files import write_output as w; "
    script += "w(Path(sys.argv[1]), b'content', '--json')"
    assert run_python("-c", script, "/dev/stdout", check=True).stdout == "content"
    run_python("-c", script, os.devnull, check=True)
    assert not Path(os.devnull).is_file()
    (tmp_path / "file").write_bytes(OLD)
    write_output(tmp_path / "file", NEW, "--json")
    assert (tmp_path / "file").read_bytes() == NEW
    (tmp_path / "folder").mkdir()
    for name in ("folder", "missing/file"):
        with pytest.raises(SettingsError, match=f"--json .*{name} cannot be written"):
            write_output(tmp_path / name, NEW, "--json")
    assert names(tmp_path) == ["file", "folder"]


def test_a_link_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`replace_link` leaves nothing beside it; one that a killed process left is swept after a minute."""
    replace_link(tmp_path / "latest", "one")
    replace_link(tmp_path / "latest", "two")
    assert (tmp_path / "latest").readlink() == Path("two")
    (tmp_path / ".isnet~aaaaa").symlink_to("nothing")
    files.sweep(tmp_path)
    assert names(tmp_path) == [".isnet~aaaaa", "latest"]
    monkeypatch.setattr(files, "_LINK_SECONDS", -1)
    files.sweep(tmp_path)
    assert names(tmp_path) == ["latest"]


def test_new_files_have_the_usual_permissions(tmp_path: Path) -> None:
    """Those of `open`, so that a group can read results."""
    write_file(tmp_path / "ours", NEW)
    (tmp_path / "usual").write_bytes(NEW)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    with reachable(tmp_path):
        tmp_path.chmod(0o755)
        with as_nobody(), pytest.raises(SettingsError, match=r"--out .*: the folder cannot be written to"):
            files.make_folder(tmp_path, "--out")


def test_an_output_folder_without_results_is_removed_and_an_earlier_one_stays(tmp_path: Path) -> None:
    (tmp_path / "earlier").mkdir()
    for folder in (tmp_path / "earlier", tmp_path / "new" / "below"):
        with files.output_folder(folder, "--out") as out:
            assert out.is_dir()
    assert names(tmp_path) == ["earlier"]
    with files.output_folder(tmp_path / "new", "--out") as out:
        (out / "result").write_bytes(NEW)
    assert names(tmp_path) == ["earlier", "new"]
