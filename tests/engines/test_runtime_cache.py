"""TensorRT-RTX's runtime cache: the real API by name, the file and what it saves against the double."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from marks import needs_rtx
from permissions import as_nobody
from tensorrt_double import Cuda, KernelCache, RtxLibrary

from isnet_trt.bundle import ENGINE
from isnet_trt.cuda.gpu import Gpu
from isnet_trt.engines import runtime_cache, tensorrt_family
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.library import EngineSource, ModelContent
from isnet_trt.engines.runtime_cache import FILES, FOLDER_VARIABLE, SUFFIX, cache_file
from isnet_trt.engines.tensorrt_engine import TensorRTEngine
from isnet_trt.engines.tensorrt_rtx import LIBRARY

GPU = Gpu("NVIDIA Double", "8.9", "CUDA 13.0")
SHAPES = ((1, 3, 8, 8), (1, 3, 16, 24))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return Cuda().install(monkeypatch)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, cuda: Cuda) -> RtxLibrary:
    double = RtxLibrary(cuda.gpu)
    monkeypatch.setattr(type(LIBRARY), "load", lambda self: double)
    monkeypatch.setattr(type(LIBRARY), "installed_version", lambda self: double.__version__)
    monkeypatch.setattr(tensorrt_family, "probe_gpu", lambda index=0: (GPU, ""))
    return double


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "ade").mkdir()
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "ade"


def _source(bundle: Path) -> EngineSource:
    info = EngineInfo("tensorrt-rtx", RtxLibrary.__version__, ENGINE, ("8.9",))
    return EngineSource(bundle / ENGINE, info, None, 3, 8, ModelContent(b"engine"))


def _compiled(library: RtxLibrary, bundle: Path) -> list[str]:
    """Open the engine, run it on inputs of two shapes, and close it: the shapes whose kernels were compiled."""
    library.compiled = []
    with LIBRARY.open_on_gpu(_source(bundle)) as engine:
        for shape in SHAPES:
            engine.run(np.zeros(shape, np.float32))
    return library.compiled


def _file(bundle: Path) -> Path:
    (file,) = bundle.with_name("cache").iterdir()
    return file


def test_a_second_process_compiles_nothing(library: RtxLibrary, bundle: Path) -> None:
    assert _compiled(library, bundle) == ["1x3x8x8", "1x3x16x24"]
    written = _file(bundle).stat()
    assert _compiled(library, bundle) == []
    assert _file(bundle).stat().st_ino == written.st_ino  # not written again
    assert list(bundle.iterdir()) == []  # what is in the bundle stays as it was listed


@pytest.mark.parametrize("content", [b"", b"no cache", b"another GPU: 1x3x8x8", bytes(range(256))])
def test_a_file_that_does_not_fit_is_written_again(library: RtxLibrary, bundle: Path, content: bytes) -> None:
    _compiled(library, bundle)
    whole = _file(bundle).read_bytes()
    _file(bundle).write_bytes(content)
    assert len(_compiled(library, bundle)) == 2
    assert _file(bundle).read_bytes() == whole


def test_it_is_saved_before_the_end(library: RtxLibrary, bundle: Path, cuda: Cuda) -> None:
    """A service that is killed: the pipeline asks whether shapes can be captured once they have run."""
    with LIBRARY.open_on_gpu(_source(bundle)) as engine:
        assert isinstance(engine, TensorRTEngine)
        engine.run(np.zeros(SHAPES[0], np.float32))
        cuda.push()
        assert engine.no_graph(frozenset(SHAPES[:1]), engine._stream) == ""
        cuda.cuCtxPopCurrent()
        assert _file(bundle).read_bytes() == b"this GPU: 1x3x8x8"


def test_the_name_depends_on_all_that_matters(bundle: Path) -> None:
    source = _source(bundle)
    files = {
        cache_file(source, GPU, "1.7.1"),
        cache_file(source, GPU, "1.8.0"),
        cache_file(source, Gpu("NVIDIA Double", "8.9", "CUDA 13.1"), "1.7.1"),
        cache_file(source, Gpu("NVIDIA Triple", "8.9", "CUDA 13.0"), "1.7.1"),
        cache_file(EngineSource(source.path, source.info, None, 3, 8, ModelContent(b"other")), GPU, "1.7.1"),
    }
    assert len(files) == 5
    assert None not in files
    assert cache_file(source, Gpu("NVIDIA Double", "8.9", "CUDA 13.0", index=1), "1.7.1") in files


def test_nothing_is_kept_unless_a_folder_is_named(
    library: RtxLibrary, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE)
    for _ in range(2):
        assert len(_compiled(library, bundle)) == 2
    assert [path.name for path in bundle.parent.iterdir()] == ["ade"]


def test_an_engine_that_a_build_tries_leaves_nothing(library: RtxLibrary, bundle: Path) -> None:
    (bundle / ENGINE).write_bytes(b"engine")
    source = EngineSource(bundle / ENGINE, _source(bundle).info, None, 3, 8)
    with LIBRARY.open_on_gpu(source) as engine:
        engine.run(np.zeros(SHAPES[0], np.float32))
    assert [path.name for path in bundle.parent.iterdir()] == ["ade"]


def test_a_folder_that_cannot_be_written_to(library: RtxLibrary, bundle: Path) -> None:
    bundle.parent.chmod(0o555)
    try:
        with as_nobody():
            assert len(_compiled(library, bundle)) == 2
    finally:
        bundle.parent.chmod(0o755)
    assert [path.name for path in bundle.parent.iterdir()] == ["ade"]


@pytest.mark.parametrize("obstacle", ["file", "folder", "link"])
def test_something_else_in_its_place(library: RtxLibrary, bundle: Path, obstacle: str) -> None:
    folder = bundle.with_name("cache")
    if obstacle == "file":
        folder.write_text("mine", "utf-8")
    elif obstacle == "folder":
        path = cache_file(_source(bundle), GPU, library.__version__)
        assert path is not None
        path.mkdir(parents=True)
    else:
        folder.symlink_to("nowhere")
    assert len(_compiled(library, bundle)) == 2
    assert {path.name for path in bundle.parent.iterdir()} == {"ade", "cache"}


def test_a_file_of_another_user_is_not_run(library: RtxLibrary, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _compiled(library, bundle)
    before = _file(bundle).read_bytes()
    monkeypatch.setattr(runtime_cache.os, "geteuid", lambda: 4711)
    monkeypatch.setattr(Path, "stat", lambda self, **more: os.stat_result((0o100644, 1, 1, 1, 4712, 0, 9, 0, 0, 0)))
    assert len(_compiled(library, bundle)) == 2
    monkeypatch.undo()
    assert _file(bundle).read_bytes() == before


def test_the_files_used_last_are_kept(library: RtxLibrary, bundle: Path) -> None:
    folder = bundle.with_name("cache")
    folder.mkdir()
    for number in range(FILES + 2):
        (folder / f"{number}{SUFFIX}").write_bytes(b"x")
        os.utime(folder / f"{number}{SUFFIX}", (time.time() - 100 + number,) * 2)
    (folder / "note.txt").write_text("not ours", "utf-8")
    _compiled(library, bundle)
    path = cache_file(_source(bundle), GPU, library.__version__)
    assert path is not None
    kept = {f"{number}{SUFFIX}" for number in range(3, FILES + 2)} | {path.name, "note.txt"}
    assert {file.name for file in folder.iterdir()} == kept


@needs_rtx
@pytest.mark.rtx
def test_the_real_library_has_every_name_in_use() -> None:
    real = LIBRARY.load()
    for name in ("create_runtime_cache", "set_runtime_cache"):
        assert hasattr(real.IRuntimeConfig, name)
    for name in (name for name in vars(KernelCache) if name[0] != "_"):
        assert hasattr(real.IRuntimeCache, name)
