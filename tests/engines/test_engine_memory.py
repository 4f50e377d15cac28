"""The limits of ONNX Runtime's memory: models of a kilobyte that ask for gigabytes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from children import environment, run_python
from onnx import helper, numpy_helper
from onnx_networks import save_network
from small_bundle import manifest

from isnet_trt.bundle import ONNX, new_bundle
from isnet_trt.engines import memory
from isnet_trt.engines.memory import LIMIT_VARIABLE, memory_limit
from isnet_trt.errors import SettingsError

_MB = 1 << 18
"""Float32 numbers in a mebibyte."""
_CHILD = """
import sys
import numpy as np
from isnet_trt import IsnetError, Segmenter
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) >> 10
start = peak()
for _ in range(2):
    try:
        with Segmenter.open(sys.argv[1], threads=1) as segmenter:
            opened = peak() - start
            print("opened")
            segmenter(np.zeros((16, 16, 3), np.uint8))
        print("segmented")
    except IsnetError as error:
        print(type(error).__name__, error)
    if not sys.argv[2:]:
        break
print("MB", opened, peak() - start)
"""


def _network(kind: str, megabytes: int) -> tuple[list, dict[str, np.ndarray]]:
    """Nodes that make a tensor of this size, from constants or from the picture, and add its greatest value."""
    shape, start = np.array([megabytes, _MB], np.int64), np.zeros((1, 1), np.float32)
    one = numpy_helper.from_array(np.zeros(1, np.float32))
    node = helper.make_node
    large = {
        "constant": [node("ConstantOfShape", ["shape"], ["large"], value=one)],
        "expand": [node("Expand", ["start", "shape"], ["large"])],
        "tile": [node("Tile", ["start", "shape"], ["large"])],
        "from the picture": [
            node("ReduceMax", ["image"], ["most"], keepdims=0),
            node("Expand", ["most", "shape"], ["large"]),
        ],
    }[kind]
    pool = node("AveragePool", ["image"], ["cells"], kernel_shape=[8, 8], strides=[8, 8], ceil_mode=1)
    nodes = [pool, *large, node("ReduceMax", ["large"], ["top"], keepdims=0), node("Add", ["cells", "top"], ["logits"])]
    return nodes, {"shape": shape, "start": start}


def _child(folder: Path, kind: str, megabytes: int, limit: str) -> tuple[str, int, int]:
    """What was printed, and the mebibytes that were added at most by opening and by all."""
    nodes, constants = _network(kind, megabytes)
    with new_bundle(folder / "small") as draft:
        path = save_network(draft.folder / ONNX, nodes, 3, constants)
        assert path.stat().st_size < 2000
        draft.finish(manifest())
    result = run_python(
        "-c", _CHILD, folder / "small", *["twice"] * bool(limit), env=environment(**{LIMIT_VARIABLE: limit}), check=True
    )
    text, _, peaks = result.stdout.rpartition("MB ")
    assert result.stderr == ""
    opened, whole = map(int, peaks.split())
    return text, opened, whole


@pytest.mark.parametrize("kind", ["constant", "expand", "tile", "from the picture"])
def test_gigabytes_beyond_the_limit_are_one_clear_error(tmp_path: Path, kind: str) -> None:
    text, _, peak = _child(tmp_path, kind, 4096, "600M")
    error = r"OutOfMemory ONNX Runtime failed on an input of shape .*ISNET_TRT_MAX_MEMORY\n"
    assert re.fullmatch(f"(opened\n{error}){{2}}", text), text
    assert peak < 700


def test_opening_folds_no_constant_far_beyond_the_model(tmp_path: Path) -> None:
    """Folded, 200 MB would be there twice from the opening on; in a run they are there and go again."""
    text, opened, whole = _child(tmp_path, "constant", 200, "")
    assert text == "opened\nsegmented\n"
    assert opened < 100
    assert 200 <= whole < 500


def test_sizes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for text, size in (("1", 1), ("800M", 800 << 20), ("8g", 8 << 30), ("2GiB", 2 << 30), (" 3KB ", 3072)):
        monkeypatch.setenv(LIMIT_VARIABLE, text)
        assert memory_limit() == size
    for text in ("0", "-1", "1.5G", "much", "8X", "9" * 30):
        monkeypatch.setenv(LIMIT_VARIABLE, text)
        with pytest.raises(SettingsError, match=f"{LIMIT_VARIABLE} is '.*'; write a number of bytes"):
            memory_limit()
    monkeypatch.delenv(LIMIT_VARIABLE)
    quotas = tmp_path / "v2", tmp_path / "v1"
    monkeypatch.setattr(memory, "_QUOTAS", quotas)
    installed = memory_limit()
    assert installed > 1 << 28
    quotas[0].write_text("max\n")
    assert memory_limit() == installed
    quotas[1].write_text("1048576\n")
    assert memory_limit() == 1 << 20
