"""Carrying wheels: cut, put together, checked, installed into a private folder; what is missing is named."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu_check import install, prepare, wheels
from benchmarks.gpu_check.wheels import MANIFEST, PACKAGES, Package
from isnet_trt import cli
from isnet_trt.errors import SettingsError


def made(folder: Path, **sizes: int) -> list[Path]:
    """Files of random bytes."""
    folder.mkdir()
    for name, size in sizes.items():
        (folder / name).write_bytes(np.random.default_rng(size).bytes(size))
    return sorted(folder.iterdir())


def test_large_files_are_cut_small_ones_share_a_folder_and_all_come_back(tmp_path: Path) -> None:
    files = made(tmp_path / "files", large=2500, middle=700, small=90, tiny=1)
    folders = wheels.cut(files, tmp_path / "carried", 1000)
    for folder in folders:
        assert sum(p.stat().st_size for p in folder.iterdir() if p.name != MANIFEST) <= 1000
    assert len(folders) == 4  # 834, 833, 833 with 90 and 1, 700
    joined = wheels.join(folders[::-1], tmp_path / "joined")
    assert [path.name for path in joined] == ["large", "middle", "small", "tiny"]
    assert [path.read_bytes() for path in joined] == [path.read_bytes() for path in files]


def test_a_missing_or_damaged_piece_is_named(tmp_path: Path) -> None:
    folders = wheels.cut(made(tmp_path / "files", large=2500), tmp_path / "carried", 1000)
    with pytest.raises(SettingsError, match=r"large is not whole: there is only large\.part00, large\.part02"):
        wheels.join([folders[0], folders[2]], tmp_path / "joined")
    piece = folders[1] / "large.part01"
    piece.write_bytes(bytes([piece.read_bytes()[0] ^ 1]) + piece.read_bytes()[1:])
    with pytest.raises(SettingsError, match=r"large was damaged on its way \(SHA-256 differs\)"):
        wheels.join(folders, tmp_path / "joined")
    piece.unlink()
    with pytest.raises(SettingsError, match="large is not whole"):
        wheels.join(folders, tmp_path / "joined")


def test_a_folder_without_manifest_or_with_a_broken_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=rf"{tmp_path} has no pieces\.json"):
        wheels.join([tmp_path], tmp_path / "joined")
    (tmp_path / MANIFEST).write_text(json.dumps([{"file": "x"}]), "utf-8")
    with pytest.raises(SettingsError, match=r"pieces\.json is damaged"):
        wheels.join([tmp_path], tmp_path / "joined")


def test_pip_is_asked_for_the_other_machine(tmp_path: Path) -> None:
    for package in PACKAGES:
        words = prepare.arguments(package, "3.12", tmp_path)
        assert words[-1] == package.pinned
        assert "--no-deps" in words
    words = prepare.arguments(Package("some", "1.2", "some"), "3.12", tmp_path)
    assert words[words.index("--python-version") + 1] == "3.12"
    assert "manylinux_2_28_x86_64" in words
    assert "manylinux_2_34_x86_64" not in words  # newer than what most machines have
    assert "--no-binary" in prepare.arguments(next(p for p in PACKAGES if p.name == "pycuda"), "3.12", tmp_path)


def test_wrong_arguments_are_refused_in_words(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "something").touch()
    with pytest.raises(SettingsError, match="is not empty"):
        prepare.main([str(tmp_path)])
    assert "opencv-python-headless" not in [p.name for p in prepare.chosen((), ("opencv",))]
    assert [p.name for p in prepare.chosen(("tensorrt", "pycuda"), ("libs", "bindings"))] == [
        "tensorrt_rtx_cu13",
        "pycuda",
    ]
    with pytest.raises(SettingsError, match="no package is left"):
        prepare.chosen(("pycuda",), ("pycuda",))
    with pytest.raises(SettingsError, match="'nonsense' is in no name; there are tensorrt_rtx_cu13_libs"):
        prepare.main([str(tmp_path / "new"), "--only", "nonsense"])
    with pytest.raises(SystemExit):
        prepare.main([str(tmp_path / "new"), "--python", "2.7"])
    assert "no version such as 3.12" in capsys.readouterr().err


def wheel(folder: Path, name: str, code: str) -> Path:
    """A real wheel of one module."""
    about = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": code,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = (base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=") for text in files.values())
    rows = [f"{file},sha256={digest.decode()},{len(files[file])}" for file, digest in zip(files, digests, strict=True)]
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
        archive.writestr(f"{about}/RECORD", "\n".join([*rows, f"{about}/RECORD,,"]) + "\n")
    return path


def test_carried_wheels_are_installed_into_the_private_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "files").mkdir()
    sources = [wheel(tmp_path / "files", name, f"ANSWER = {name!r}\n") for name in ("carried_one", "carried_two")]
    known = [Package("carried-one", "1.0", "carried_one"), Package("carried_two", "1.0", "json")]
    monkeypatch.setattr(install, "PACKAGES", (*known, Package("absent", "", "absent")))
    folders = wheels.cut(sources, tmp_path / "carried", 600)
    assert len(folders) > 1
    site = tmp_path / "site"
    assert install.main([*map(str, folders), "--site", str(site)]) == 0
    told = capsys.readouterr().out
    assert "here already: carried_two" in told  # its module is json, which is there
    assert "installed: carried_one" in told
    script = "import carried_one, importlib.metadata as m; print(carried_one.ANSWER, m.version('carried-one'))"
    ran = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True
    )
    assert ran.stdout.split() == ["carried_one", "1.0"], ran.stderr
    assert not install.importable("carried_one")
    assert not (site / "carried_two.py").exists()


def test_pycuda_without_toolkit_or_driver_is_named_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "files").mkdir()
    source = tmp_path / "files" / "pycuda-2026.1.tar.gz"
    source.write_bytes(b"not read before what it needs is there")
    monkeypatch.setattr(install, "PACKAGES", (Package("pycuda", "", "no_such_pycuda", "source"),))
    folders = wheels.cut([source], tmp_path / "carried", 1000)
    arguments = [*map(str, folders), "--site", str(tmp_path / "site")]
    monkeypatch.setattr(install, "find_toolkit", lambda: None)
    assert install.main(arguments) == cli.FAILED
    assert "no cuda.h was found" in capsys.readouterr().err
    monkeypatch.setattr(install, "find_toolkit", lambda: tmp_path)
    monkeypatch.setattr(install, "find_driver", lambda: None)
    assert install.main(arguments) == cli.FAILED
    assert "no NVIDIA driver is installed" in capsys.readouterr().err


def test_the_toolkit_is_found_beside_nvcc_or_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CUDA_HOME", "CUDA_ROOT", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_PATH", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(install, "_USUAL", tmp_path / "usual")
    assert install.find_toolkit() is None
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "cuda.h").touch()
    assert install.find_toolkit() == tmp_path
    header = tmp_path / "usual" / "cuda-13.0" / "include" / "cuda.h"
    header.parent.mkdir(parents=True)
    header.touch()
    assert install.find_toolkit() == tmp_path / "usual" / "cuda-13.0"  # without nvcc on PATH


def test_files_belong_to_the_package_of_their_whole_name() -> None:
    names = ("mako-1.3.10-py3-none-any.whl", "tensorrt_rtx_cu13-1.7-py3-none-any.whl", "tensorrt_rtx_cu13_libs-1.7.whl")
    files = [Path(name) for name in names]
    assert install.files_of(Package("tensorrt_rtx_cu13", "", "x"), files) == [files[1]]
    assert install.files_of(Package("Mako", "", "mako"), files) == [files[0]]
