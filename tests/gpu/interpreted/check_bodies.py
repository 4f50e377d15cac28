"""The GPU tests' comparisons and the kernels' timings on host memory, with the real kernels in Triton's interpreter.

What needs no real kernels: tests/gpu/test_gpu_bodies.py.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_stages
from benchmarks.kernel_cost import Card
from isnet_trt.settings import Inference, Preprocess
from tests.gpu import test_gpu_kernels, test_gpu_runtime
from tests.gpu.comparison import Case
from tests.gpu.host import LABELS, SMALL, HostTarget, use_cpu
from tests.gpu.record import Record
from tests.interpreter import use_interpreter
from tests.kernels.cases import FAMILIES
from tests.kernels.variants import TritonKernels, Variant, interpreted

use_interpreter()
SLIDE = Inference("slide", (16, 24), (11, 16), (0.75, 1.0), flip=True, softmax_before_resize=True)
WINDOWS = Case("slide", LABELS, Preprocess((26, 18)), SLIDE, (18, 26), batch=3)


def target_of(folder: Path, case: Case = SMALL, **planted: Any) -> HostTarget:
    return HostTarget(folder, lambda classes: TritonKernels(classes=classes), case, **planted)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path / "record.jsonl")


@pytest.mark.parametrize("case", [SMALL, pytest.param(WINDOWS, marks=pytest.mark.slow)], ids=lambda case: case.label)
def test_stages_that_are_right_pass(record: Record, tmp_path: Path, case: Case) -> None:
    target = target_of(tmp_path, case)
    target.quick = False
    test_gpu_runtime.test_stages(record, target)
    assert not record.wrong
    assert [row["how"] for row in record.rows] == ["eager", "captured", "replayed"]
    assert all(row["clear equal %"] == 100 and row["clear %"] > 50 for row in record.rows)


def test_kernels_are_compared_and_a_variant_that_cannot_launch_costs_its_own_cases(
    record: Record, tmp_path: Path
) -> None:
    class Broken(Variant):
        """Launches nothing that is larger than ten values, as Triton where there is no C compiler."""

        def run(self, set_name: str, name: str, **arguments: Any) -> None:
            if arguments["count"] > 10:
                raise RuntimeError("Failed to find C compiler.")
            super().run(set_name, name, **arguments)

    target = target_of(tmp_path)
    sound = target.variants()[0]
    broken = [Broken(name, "cpu", sound.kernels) for name in ("Triton", "sm_80 PTX")]
    family = dataclasses.replace(FAMILIES["finite"], real=FAMILIES["finite"].odd[4:5], dtypes=("fp32",))
    for case in family.odd[3:5]:
        test_gpu_kernels.compare(record, target, family, case, family.dtypes, [sound, *broken])
    assert [row["form"] for row in record.rows] == ["interpreter", "interpreter", "Triton", "sm_80 PTX"]
    assert [one["what"].split(", ")[-1] for one in record.missing] == ["Triton"]
    assert len(record.wrong) == 1
    assert "sm_80 PTX: RuntimeError: Failed to find C compiler." in record.wrong[0]
    monkey = Record(tmp_path / "other.jsonl")
    target.variants = lambda: [sound, sound]  # type: ignore[method-assign]
    test_gpu_kernels.test_kernels(monkey, target, family)
    assert len(monkey.rows) == len(family.odd) + 1 + 1
    assert monkey.figures["seed"] == 5


RATES = {"matrix fp16": 1e30, "matrix fp32": 1e8, "copy": 1e12}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gpu_stages.Bench:
    use_cpu(monkeypatch)
    card = Card("this card", RATES["copy"], 1e9, RATES["matrix fp32"])
    return gpu_stages.Bench(target_of(tmp_path), True, card, RATES)


def test_kernels_are_timed_beside_their_floors(bench: gpu_stages.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag of `finite` is cleared on the device: a copy from the host cannot be captured."""
    copies: list[Any] = []
    monkeypatch.setattr("torch.Tensor.copy_", lambda self, *arguments, **options: copies.append(arguments))
    family = FAMILIES["finite"]
    monkeypatch.setitem(FAMILIES, "finite", dataclasses.replace(family, real=family.odd[4:5]))
    (row,) = gpu_stages.speed(bench, "finite")
    assert row["floor µs"] > 0
    assert row["floor reached %"] > 0
    assert not copies


def test_attention_is_held_to_its_aim(bench: gpu_stages.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_stages, "ATTENTION", ((17, 2), (20, 1)))
    rows = list(gpu_stages.attention_rate(bench))
    assert [text.split(" tokens")[0] for text in bench.missed] == ["2 x 17"]  # one window has no aim
    assert all(row["PyTorch's TFLOP/s"] > 0 for row in rows)


@pytest.mark.slow
def test_forms_of_attention_are_compared_and_timed(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form with specialised warps is not interpreted: it is missed by name, and then has a double."""
    use_cpu(monkeypatch)
    variant, real = interpreted(arch=90), test_gpu_kernels.attention
    held = type(variant.kernels("w256"))
    monkeypatch.setattr(test_gpu_kernels, "ATTENTION_FORMS", ((1, 20, 2),))
    monkeypatch.setattr(held, "__contains__", lambda _, name: "specialised" not in str(name))
    monkeypatch.setattr(HostTarget, "variants", lambda _: [variant])
    test_gpu_kernels.test_attention_forms(record, target_of(tmp_path))
    assert [lacking["what"] for lacking in record.missing] == ["1 x 20, specialised warps"]
    assert not record.figures

    def double(variant: Variant, case: Any, *arguments: Any) -> Any:
        return real(variant, dataclasses.replace(case, specialised=False), *arguments)

    monkeypatch.setattr(held, "__contains__", lambda _, name: True)
    monkeypatch.setattr(test_gpu_kernels, "attention", double)
    test_gpu_kernels.test_attention_forms(record, target_of(tmp_path))
    assert not record.wrong
    labels = ["1 x 20, tensor maps", "1 x 20, tensor maps", "1 x 20, specialised warps"]
    assert [row["case"] for row in record.rows if row["right"] and row["TFLOP/s"] > 0] == labels
    first, second = (row["µs"] for row in record.rows[1:])
    (ratio,) = record.figures.values()
    assert ratio == pytest.approx(first / second)
