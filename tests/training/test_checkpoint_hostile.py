"""Damaged and hostile checkpoint files: nothing is run, nothing is wrong in silence, memory and time stay bounded."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from children import environment, explained
from torch import Tensor

from isnet_trt.errors import CheckpointError
from isnet_trt.training import DEMO_CHECKPOINT
from isnet_trt.training.checkpoint import load_checkpoint, read_state, read_weights

State = dict[str, Tensor]
DEMO = torch.load(DEMO_CHECKPOINT, weights_only=True)["model"]


def refusal(path: Path, read: Callable[[Path], Any] = load_checkpoint) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 3000
    return str(caught.value)


def saved(folder: Path, content: Any, **options: Any) -> Path:
    path = folder / "weights.pth"
    torch.save(content, path, **options)
    return path


def archive(folder: Path, body: bytes, *storages: bytes) -> Path:
    """A file of torch.save's layout with this pickle."""
    path = folder / "made.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("made/data.pkl", body)
        for number, content in enumerate(storages):
            file.writestr(f"made/data/{number}", content)
    return path


# Checksums


@pytest.mark.parametrize("where", ["weights", "optimiser", "pickle"])
def test_a_flipped_bit_is_found_in_every_entry(tmp_path: Path, where: str) -> None:
    marker = torch.full((50,), 1234.5)
    path = saved(tmp_path, {"model": DEMO, "optimizer": {"buffer": marker}})
    with zipfile.ZipFile(path) as file:
        entry = {
            "weights": next(i for i in file.infolist() if i.file_size > 10_000 and "/data/" in i.filename),
            "optimiser": next(i for i in file.infolist() if file.read(i) == marker.numpy().tobytes()),
            "pickle": next(i for i in file.infolist() if i.filename.endswith("data.pkl")),
        }[where]
    content = bytearray(path.read_bytes())
    start = entry.header_offset + 30 + sum(struct.unpack("<2H", content[entry.header_offset + 26 :][:4]))
    content[start + entry.file_size // 2] ^= 4
    path.write_bytes(content)
    torch.load(path, weights_only=True)  # torch takes it
    for read in (load_checkpoint, read_weights, read_state):
        assert f"{entry.filename}' has another CRC-32" in refusal(path, read)


def test_a_file_without_checksums_is_let_through(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path, {"model": DEMO})
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(path) as file:
        assert not any(info.CRC for info in file.infolist())
    loaded = load_checkpoint(path).state_dict
    assert all(torch.equal(loaded[name], tensor) for name, tensor in DEMO.items())


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    """torch maps the compressed bytes as if they were the weights."""
    path = saved(tmp_path, {"model": DEMO})
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(path) as file, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for info in file.infolist():
            target.writestr(info.filename, file.read(info))
    assert "is compressed" in refusal(packed)


# Files that are none


def test_special_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.pth")
    assert "a FIFO" in refusal(tmp_path / "fifo.pth")
    (tmp_path / "link.pth").symlink_to("/dev/zero")
    assert "a device" in refusal(tmp_path / "link.pth")
    (tmp_path / "loop.pth").symlink_to("loop.pth")
    assert "link" in refusal(tmp_path / "loop.pth")
    assert "name" in refusal(tmp_path / ("x" * 300 + ".pth"))
    assert "is a folder" in refusal(tmp_path)
    sparse = tmp_path / "sparse.pth"
    with sparse.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(1 << 42)
    assert "the limit is 16 GiB" in refusal(sparse)


@pytest.mark.skipif(os.geteuid() == 0, reason="the super-user may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": DEMO})
    path.chmod(0)
    assert "Permission denied" in refusal(path)


# Tensors that are no weights

UNUSABLE: dict[str, Callable[[], Tensor]] = {
    "float8": lambda: torch.zeros(64).to(torch.float8_e4m3fn),
    "complex": lambda: torch.zeros(64, dtype=torch.complex64),
    "integer": lambda: torch.zeros(64, dtype=torch.int32),
    "sparse": lambda: torch.zeros(64).to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(64), 0.1, 0, torch.qint8),
    "meta": lambda: torch.zeros(64, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(3)]),
    "NaN": lambda: torch.full((64,), torch.nan),
    "beyond float32": lambda: torch.full((64,), 1e300, dtype=torch.float64),
    "one too many": lambda: torch.zeros(65),
    "4 TiB of one stored number": lambda: torch.zeros(()).expand(1 << 20, 1 << 20),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", UNUSABLE)
@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_that_are_no_weights(tmp_path: Path, kind: str, zipped: bool) -> None:
    content = {"model": {**DEMO, "bottleneck.1.bias": UNUSABLE[kind]()}}
    path = saved(tmp_path, content, _use_new_zipfile_serialization=zipped)
    text = refusal(path)
    # The old format has no place for the element size of such storages.
    assert "bottleneck.1.bias" in text or not zipped
    if kind not in ("one too many", "integer"):
        refusal(path, read_weights)


def test_training_state_with_4_tib_of_one_number(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": DEMO, "x": torch.zeros(()).expand(1 << 20, 1 << 20)})
    assert "repeat a few stored values" in refusal(path, read_state)
    assert load_checkpoint(path).sha256  # it is not among the weights


# Pickles that ask for more than they hold

_MIB = 1 << 20
BOMBS: dict[str, bytes] = {
    "3 GiB of bytes": b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (3 << 30).to_bytes(5, "little") + b"\x85R.",
    "3 GiB of floats": b"\x80\x02ctorch\nFloatStorage\n\x8a\x05" + (3 << 30).to_bytes(5, "little") + b"\x85R.",
    "a tensor of 3 GiB": b"\x80\x02ctorch\nTensor\n\x8a\x05" + (3 << 30).to_bytes(5, "little") + b"\x85R.",
    "a length of 4 GiB": b"\x80\x04\x8e" + (1 << 32).to_bytes(8, "little") + b"short.",
    "a memo of 4 G places": b"\x80\x02}r\xff\xff\xff\xff.",
    "three million lists": b"\x80\x02(" + b"]" * (3 * _MIB) + b"l.",
    "a list copied many times": b"\x80\x02("
    + b"N" * 300_000
    + b"lq\x00"
    + b"cbuiltins\nset\nh\x00\x85R" * 50_000
    + b".",
    "keys whose hash takes years": b"\x80\x02}" + b")" + b"2\x86" * 60 + b"Ns.",
    "integers of one hash": b"\x80\x02}("
    + b"".join(b"\x8a\x0c" + ((2**61 - 1) * k).to_bytes(12, "little") + b"N" for k in range(50_000))
    + b"u.",
    "nested lists": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "itself": b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.",
    "a global in an extension registry": b"\x80\x02\x82\x01.",
    "an instance of a class": b"\x80\x02(cos\nsystem\nX\x04\x00\x00\x00trueo.",
    "a call by STACK_GLOBAL": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
    "an attribute of an allowed function": b"\x80\x04\x8c\x06torch.\x8c\x0d_utils.system\x93\x8c\x04true\x85R.",
    "a call of a number": b"\x80\x02K\x01)R.",
    "no object": b"\x80\x02.",
    "no end": b"\x80\x02}",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_pickles_that_ask_for_more_than_they_hold(tmp_path: Path, kind: str) -> None:
    refusal(archive(tmp_path, BOMBS[kind], bytes(8)))
    if len(BOMBS[kind]) < 1000:
        (tmp_path / "bare.pth").write_bytes(BOMBS[kind])
        refusal(tmp_path / "bare.pth")


@pytest.mark.slow
def test_memory_of_hostile_files_is_bounded(tmp_path: Path) -> None:
    for number, body in enumerate(BOMBS.values()):
        archive(tmp_path, body, bytes(8)).rename(tmp_path / f"{number}.pth")
    saved(tmp_path, {"layer1.x": torch.zeros(()).expand(1 << 20, 1 << 20)})
    program = (
        "import resource, sys, pathlib, time\n"
        "from isnet_trt.training.checkpoint import read_state, read_weights\n"
        "from isnet_trt.errors import CheckpointError\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "before = peak()\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).glob('*.pth')):\n"
        "    for read in (read_weights, read_state):\n"
        "        start = time.process_time()\n"
        "        try:\n"
        "            read(path)\n"
        "        except CheckpointError:\n"
        "            pass\n"
        "        assert time.process_time() - start < 5, path\n"
        "print(peak() - before)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, explained(result)
    assert int(result.stdout) < 512  # MiB


def test_names_that_are_no_text_for_a_terminal(tmp_path: Path) -> None:
    content = {"\x1b[2J" + "x" * 100_000: torch.zeros(1), "\ud800": torch.zeros(1)}
    path = saved(tmp_path, content)
    text = refusal(path)
    assert "\x1b" not in text
    text.encode()


def test_storages_that_are_not_in_the_archive(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": DEMO})
    with zipfile.ZipFile(path) as file:
        body = file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))
    assert "not all there" in refusal(archive(tmp_path, body))


def test_entries_that_share_their_bytes(tmp_path: Path) -> None:
    """A directory that lists one entry thousands of times would be read thousands of times."""
    path = archive(tmp_path, pickle.dumps({}, 2), bytes(_MIB))
    content = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        start = file.start_dir
    end = content.rindex(b"PK\x05\x06")
    first = content.index(b"PK\x01\x02", start)
    second = content.index(b"PK\x01\x02", first + 4)
    entries = [content[second:end].replace(b"data/0", b"data/%x" % k) for k in range(10)]
    directory = content[first:second] + b"".join(entries)
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 11, 11, len(directory), start, 0)
    path.write_bytes(content[:start] + directory + tail)
    assert "is damaged" in refusal(path)
