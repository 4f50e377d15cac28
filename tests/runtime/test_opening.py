"""What is checked is what is opened: libraries get the bytes whose digest was taken, and files that are listed."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tiny_model
from children import run_python
from onnx import helper
from onnx_networks import save_network
from small_bundle import manifest, save_model

from isnet_trt import Segmenter
from isnet_trt.bundle import ENGINE, KERNELS, MANIFEST, ONNX, Bundle, new_bundle, read_bundle
from isnet_trt.cuda.kernels import CompiledFiles
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.tensorrt import TensorRT
from isnet_trt.errors import BundleError, EngineError, EngineUnavailable
from isnet_trt.runtime import opening

PICTURE = np.random.default_rng(5).integers(0, 256, (70, 90, 3), np.uint8)
DATA = f"{ONNX}.data"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return read_bundle(tiny_model.write_bundle(tmp_path / "tiny", tiny_model.labels(5)))


def _labels(bundle: Bundle) -> np.ndarray:
    with Segmenter.open(bundle.folder, threads=1) as segmenter:
        return segmenter(PICTURE).labels


@pytest.fixture
def swapped(bundle: Bundle, tmp_path: Path) -> Callable[[], None]:
    """Puts another sound model in the place of the bundle's, as a writer would between check and use."""
    other = tiny_model.write_model(tmp_path / "other.onnx", 5, gain=-1.0)

    def swap() -> None:
        Path(shutil.copy(other, tmp_path / "copy.onnx")).replace(bundle.path(ONNX))

    return swap


def test_a_model_swapped_after_the_check_is_not_opened(
    bundle: Bundle, swapped: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, real = _labels(bundle), onnxruntime.InferenceSession

    def session(*arguments: object, **options: object) -> object:
        swapped()
        return real(*arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    np.testing.assert_array_equal(_labels(bundle), expected)
    monkeypatch.undo()
    with pytest.raises(BundleError, match=rf"{ONNX} was changed after the bundle was built"):
        _labels(bundle)


def test_a_model_swapped_before_the_check_is_refused(
    bundle: Bundle, swapped: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = opening.check_engine

    def check(info: EngineInfo, gpu: int) -> None:
        real(info, gpu)
        swapped()

    monkeypatch.setattr(opening, "check_engine", check)
    with pytest.raises(BundleError, match="changed after the bundle was built"):
        _labels(bundle)


def test_every_file_is_read_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from isnet_trt.bundle import files

    opened: list[str] = []
    real = files.open_regular
    monkeypatch.setattr(
        files, "open_regular", lambda path, **options: (opened.append(path.name), real(path, **options))[1]
    )
    _labels(bundle)
    assert sorted(opened) == [MANIFEST, ONNX]


def test_a_changed_file_that_is_not_used_is_found(tmp_path: Path) -> None:
    """The kernels of a bundle on a CPU, or its engine where ONNX Runtime opens it."""
    for name in (f"{KERNELS}/sm_80/resize.ptx", ENGINE):
        folder = tmp_path / name.replace("/", "-")
        with new_bundle(folder) as draft:
            tiny_model.write_model(draft.folder / ONNX, 3)
            (draft.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (draft.folder / name).write_bytes(b"// ptx")
            draft.finish(manifest())
        (folder / name).write_bytes(b"// txp")
        with pytest.raises(BundleError, match=rf"{Path(name).name} was changed"):
            Segmenter.open(folder, threads=1)


@pytest.fixture
def external(tmp_path: Path) -> Bundle:
    """A bundle whose model has its weights in another file."""
    with new_bundle(tmp_path / "external") as draft:
        save_model(draft.folder / ONNX, external=True)
        draft.finish(manifest())
    bundle = read_bundle(tmp_path / "external")
    assert DATA in bundle.manifest.files
    return bundle


needs_memory = pytest.mark.skipif(
    not hasattr(onnxruntime.SessionOptions, "add_external_initializers_from_files_in_memory"),
    reason="this ONNX Runtime takes external data from files only",
)


@needs_memory
def test_listed_external_data_is_read_by_us(external: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with new_bundle(tmp_path / "inside") as draft:
        save_model(draft.folder / ONNX)
        draft.finish(manifest())
    expected, real = _labels(read_bundle(tmp_path / "inside")), onnxruntime.InferenceSession

    def session(*arguments: object, **options: object) -> object:
        external.path(DATA).write_bytes(bytes(external.manifest.files[DATA].bytes))
        return real(*arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    np.testing.assert_array_equal(_labels(external), expected)


def test_a_model_with_names_that_are_no_unicode(bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    """A flipped bit that the digest cannot show, since the writer took it afterwards; ONNX Runtime takes any bytes."""
    model = bundle.path(ONNX).read_bytes()
    for old, new in ((b"batch", b"bat\xffh"), (b"\x01x", b"\x01\xff"), (b"Conv", b"Con\xff")):
        assert old in model
        with new_bundle(bundle.folder, force=True) as draft:
            (draft.folder / ONNX).write_bytes(model.replace(old, new))
            draft.finish(dataclasses.replace(bundle.manifest, files={}))
        with pytest.raises(EngineError, match=r"cannot load .*model\.onnx"):
            _labels(bundle)
        assert capfd.readouterr() == ("", "")


_MEMORY = """
import gc, sys
import numpy as np
from isnet_trt import Segmenter
with Segmenter.open(sys.argv[2], threads=1):  # ONNX Runtime's own
    pass
def resident():
    return int(open("/proc/self/statm").read().split()[1]) >> 8
start = resident()
with Segmenter.open(sys.argv[1], threads=1):
    gc.collect()
    print(resident() - start)
"""


def test_the_file_does_not_stay_in_memory_beside_the_session(bundle: Bundle, tmp_path: Path) -> None:
    """Weights of 48 MiB: the session holds them once, while it is opened the file is there as well."""
    weight = np.ones((2048, 6144, 1, 1), np.float32)
    squeeze = np.ones((3, 2048, 1, 1), np.float32)
    widen = np.ones((6144, 3, 8, 8), np.float32)
    with new_bundle(tmp_path / "large") as draft:
        nodes = [
            helper.make_node("Conv", ["image", "widen"], ["wide"], strides=[8, 8], pads=[4, 4, 4, 4]),
            helper.make_node("Conv", ["wide", "weight"], ["mixed"]),
            helper.make_node("Conv", ["mixed", "squeeze"], ["logits"]),
        ]
        weights = {"widen": widen, "weight": weight, "squeeze": squeeze}
        size = save_network(draft.folder / ONNX, nodes, 3, weights).stat().st_size >> 20
        draft.finish(manifest())
    added = int(run_python("-c", _MEMORY, tmp_path / "large", bundle.folder, check=True).stdout)
    assert size <= added < 1.5 * size


def test_external_data_that_the_manifest_does_not_list(
    external: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither beside the model nor in the working folder, where a library would look."""
    with new_bundle(tmp_path / "unlisted") as draft:
        shutil.copy(external.path(ONNX), draft.folder)
        draft.finish(manifest())
    shutil.copy(external.path(DATA), tmp_path / "unlisted")
    monkeypatch.chdir(tmp_path / "unlisted")
    unlisted = read_bundle(tmp_path / "unlisted")
    assert list(unlisted.manifest.files) == [ONNX]
    with pytest.raises(EngineError, match=r"model\.onnx: .*external data must lie in files that bundle\.json lists"):
        _labels(unlisted)


def test_a_graph_larger_than_protobuf_reads_is_not_read(bundle: Bundle) -> None:
    path = bundle.folder / MANIFEST
    size = 2**31 + 1
    os.truncate(bundle.path(ONNX), size)
    recorded = bundle.manifest.files[ONNX].bytes
    path.write_text(path.read_text("utf-8").replace(f'"bytes": {recorded}', f'"bytes": {size}'), "utf-8")
    with pytest.raises(BundleError, match=rf"model\.onnx is too large: {size} bytes, the limit is 2147483648"):
        _labels(bundle)


class _Compiling(TensorRT):
    """TensorRT as far as to what it is given."""

    def open_on_gpu(self, source, **options):
        self.source = source
        raise EngineError("no further")


def test_engine_and_kernels_are_passed_as_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = _Compiling()
    monkeypatch.setattr(opening, "library", lambda kind: library)
    monkeypatch.setattr(opening, "check_engine", lambda info, gpu: None)
    contents = {"sm_80/launch.json": b"{}", "sm_80/resize.ptx": b"// ptx"}
    with new_bundle(tmp_path / "small") as draft:
        save_model(draft.folder / ONNX)
        (draft.folder / ENGINE).write_bytes(b"engine")
        (draft.folder / KERNELS / "sm_80").mkdir(parents=True)
        for name, content in contents.items():
            (draft.folder / KERNELS / name).write_bytes(content)
        draft.finish(manifest(EngineInfo("tensorrt", "10.13.3.9", ENGINE, ("8.9",))))
    bundle = read_bundle(tmp_path / "small")
    (tmp_path / "small" / KERNELS / "sm_89").mkdir()  # nobody lists it
    with pytest.raises(EngineError, match="no further"):
        opening.open_engine(bundle)
    assert library.source.read_model() == b"engine"
    assert library.source.kernels == CompiledFiles(bundle.folder / KERNELS, contents)
    for path in (bundle.path(ENGINE), bundle.folder / KERNELS):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert library.source.read_model() == b"engine"
    on_disk = dataclasses.replace(library.source, content=None)
    with pytest.raises(EngineError, match=r"model\.engine cannot be read: No such file"):
        on_disk.read_model()


def test_a_bundle_of_an_engine_of_the_future_is_named(tmp_path: Path) -> None:
    folder = tiny_model.write_bundle(tmp_path / "new", tiny_model.labels(3))
    text = (folder / MANIFEST).read_text("utf-8")
    (folder / MANIFEST).write_text(text.replace('"onnxruntime"', '"future"'), "utf-8")
    with pytest.raises(EngineUnavailable, match=r"new was built for the engine 'future'.*engine='onnxruntime'"):
        Segmenter.open(folder)
    Segmenter.open(folder, engine="onnxruntime").close()
