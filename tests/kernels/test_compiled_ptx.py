"""The compiled kernels, their PTX of sm_80 and attention's of sm_90 and sm_120, emulated with the runtime's packing.

Beside the results, every access is checked: bounds, alignment, values that nobody or another block has written
(tests/ptx_memory.py). Buffers end where the data ends, and begin beside a multiple of 16 where `unaligned` allows it.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ptx_machine import PtxKernels
from ptx_memory import Fault, Memory

from isnet_trt.errors import EngineError
from tests.interpreter import NEEDED
from tests.kernels.cases import FAMILIES
from tests.kernels.trials import examine, wrong
from tests.kernels.variants import Emulated, compile_sets, set_folder, set_of

pytestmark = [pytest.mark.slow, NEEDED]
EMULATED = ("1", "5", "19", "20", "150", "w256")
"""Sets of kernels; the others have the same code for other numbers of classes and channels."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kernels")
    assert compile_sets(path, (80,), EMULATED) == []
    return path


CASES = [
    pytest.param(family, case, dtype, id=f"{family.name}-{case.label}-{dtype}")
    for family in FAMILIES.values()
    for case in family.odd
    if set_of(family.name, getattr(case, "classes", 19), getattr(case, "width", 256)) in EMULATED
    or family.name == "region_pool"
    if not getattr(case, "tile", 0)
    for dtype in family.dtypes
]


@pytest.mark.parametrize(("family", "case", "dtype"), CASES)
def test_kernels_agree_with_their_references(folder: Path, family: Any, case: Any, dtype: str) -> None:
    trial = family.trial(Emulated(folder), case, dtype, 8)
    assert not wrong(examine(trial, trial.reference(), twice=False))


@pytest.fixture(scope="module")
def attention_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("attention")
    assert compile_sets(path, (90, 120), ("w256", "w32"), dtypes=("fp16", "bf16")) == []
    return path


LATER = [
    pytest.param(case, dtype, arch, id=f"{case.label}-{dtype}-sm_{arch}")
    for arch in (90, 120)
    for number, case in enumerate(FAMILIES["attention"].odd)
    if arch == 90 or not case.tile  # there are no tensor maps for sm_120
    for dtype in ("fp16", "bf16")
    if dtype == "fp16" or case.tile or number < 3
]


@pytest.mark.parametrize(("case", "dtype", "arch"), LATER)
def test_attention_of_later_architectures(attention_folder: Path, case: Any, dtype: str, arch: int) -> None:
    """Those whose code has instructions that sm_80 lacks (tests/kernels/test_hopper_ptx.py)."""
    trial = FAMILIES["attention"].trial(Emulated(attention_folder, arch=arch), case, dtype, 8)
    assert not wrong(examine(trial, trial.reference(), twice=False))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("box", [1, 32, 64], "deadlock: .* and 16384 bytes"), ("shape", ["batch", "queries", 256], "relative error"),
     ("swizzle", 64, "relative error"), ("swizzle", 0, "relative error")],
)  # fmt: skip
def test_a_wrong_tensor_map_is_seen(
    attention_folder: Path, tmp_path: Path, field: str, value: Any, message: str
) -> None:
    """A box, a stride or a swizzle that is not the one that the code was compiled for."""
    shutil.copytree(attention_folder / "90", tmp_path / "90")
    path = set_folder(tmp_path, "w256", 90) / "sm_90" / "launch.json"
    data = json.loads(path.read_text("utf-8"))
    data["kernels"]["attention_map64_fp16"]["maps"]["k"][field] = value
    path.write_text(json.dumps(data), "utf-8")
    case = next(case for case in FAMILIES["attention"].odd if (case.tile, case.specialised) == (64, False))
    trial = FAMILIES["attention"].trial(Emulated(tmp_path, arch=90), case, "fp16", 8)
    try:
        found = wrong(examine(trial, trial.reference(), twice=False))
    except (Fault, EngineError) as error:
        found = [str(error)]
    assert any(re.search(message, text) for text in found), found


@pytest.mark.parametrize(("name", "number"), [("attention", 7), ("region_pool", 4)])
def test_the_runtime_cuts_in_parts_where_many_multiprocessors_would_idle(folder: Path, name: str, number: int) -> None:
    family = FAMILIES[name]
    trial = family.trial(Emulated(folder, 40), family.odd[number], "fp16", 8)
    assert trial.parts > 1
    assert not wrong(examine(trial, trial.reference(), twice=False))


def test_faults_are_seen(folder: Path) -> None:
    """A buffer that is a value short, one at an odd address, and results that two blocks write."""
    ptx = PtxKernels(set_folder(folder, "19", 80))
    values = ptx.memory.hold("values", bytes(4 * 99))
    with pytest.raises(Fault, match="of values, which has 396"):
        ptx.launch("finite_fp32", 0, values=values, flag=ptx.memory.hold("flag", bytes(4)), at=0, count=100)
    memory = Memory()
    place = memory.reserve("place", 8, shift=2)
    with pytest.raises(Fault, match="no multiple of 4"):
        memory.load(np.array([place], np.uint64), 4)
    with pytest.raises(Fault, match="nobody wrote"):
        memory.load(np.array([place], np.uint64), 2)
    for memory.block in range(2):
        memory.store(np.array([place], np.uint64), np.full((1, 2), 7, np.uint8))
    memory.block = 0
    with pytest.raises(Fault, match="another block wrote"):
        memory.load(np.array([place], np.uint64), 2)
    with pytest.raises(Fault, match="two blocks write different"):
        memory.store(np.array([place], np.uint64), np.full((1, 2), 8, np.uint8))
