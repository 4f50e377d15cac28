"""The GPU check's runtime comparisons on host memory: the real pipeline and kernels, in the interpreter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TESTS = Path(__file__).parents[2]
sys.path[:0] = [str(TESTS), str(TESTS / "benchmarks"), str(TESTS / "cuda" / "interpreted")]
import tiny_model  # noqa: E402
from gpu_check_answers import Collected  # noqa: E402
from host_rig import HostRig  # noqa: E402

from benchmarks.gpu_check import rigs, runtime  # noqa: E402
from benchmarks.gpu_check.check import Setup  # noqa: E402
from benchmarks.gpu_check.networks import Network, Strided  # noqa: E402
from benchmarks.gpu_check.rigs import Case  # noqa: E402
from isnet_trt.cuda.pipeline import Pipeline  # noqa: E402
from isnet_trt.settings import Inference, Preprocess  # noqa: E402
from tests.interpreter import use_interpreter  # noqa: E402
from tests.kernels.variants import TritonKernels as HostKernels  # noqa: E402

use_interpreter()
LABELS = tiny_model.labels(5, ((1, 2),))
CASE = Case("small", LABELS, Preprocess((23, 17)), Inference(), (17, 23))
SLIDE = Inference("slide", (16, 24), (11, 16), (0.75, 1.0), flip=True, softmax_before_resize=True)


def rig(gain: float = 1.0, refused: str = "") -> HostRig:
    """Pipelines with the real kernels, interpreted."""
    return HostRig(lambda classes: HostKernels(classes=classes), gain, refused)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(CASE, id="whole"),
        pytest.param(
            Case("slide", LABELS, Preprocess((26, 18)), SLIDE, (18, 26), batch=3), id="slide", marks=pytest.mark.slow
        ),
    ],
)
def test_stages_that_are_right_pass(case: Case) -> None:
    answer = Collected()
    runtime.stages(answer, Setup(seed=5), rig(), [case])
    assert not answer.said
    assert [row["how"] for row in answer.rows] == ["eager", "captured", "replayed"]
    assert all(row["clear equal %"] == 100 and row["clear %"] > 50 for row in answer.rows)


def test_another_network_and_a_missing_graph_are_found() -> None:
    answer = Collected()
    runtime.stages(answer, Setup(seed=5), rig(gain=-1, refused="it cannot be captured"), [CASE])
    assert any("of the labels are the host's" in text for text in answer.said)
    assert any("of the clear pixels are the host's, not all" in text for text in answer.said)
    assert any("no CUDA graph was captured: no CUDA graphs: it cannot" in text for text in answer.said)


@pytest.mark.slow
def test_replays_are_compared_with_eager_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Collected()
    runtime.graphs(answer, Setup(seed=6), rig(), CASE)
    assert not answer.said
    assert answer.figures == {"graphs": "CUDA graphs", "calls compared": 6}
    plain = Pipeline.__call__
    calls = []

    def stale(self: Pipeline, *arguments: Any) -> Any:
        """The third pipeline call gives the label map of the first again."""
        calls.append(plain(self, *arguments))
        return calls[3] if len(calls) > 4 else calls[-1]

    monkeypatch.setattr(Pipeline, "__call__", stale)
    answer = Collected()
    runtime.graphs(answer, Setup(seed=6), rig(), CASE)
    assert any("the replay differs" in text for text in answer.said)
    assert "two results share memory" in answer.said


class Stored(dict):
    """Stored outputs as a file of them answers."""

    @property
    def files(self) -> list[str]:
        return list(self)


def stored(network: Network, image: np.ndarray, shift: float = 0.0) -> Stored:
    """What would be stored of a network on a picture."""
    from isnet_trt.pictures.preprocess import normalise

    pixels = normalise(image, Preprocess(image.shape[:2], keep_ratio=False)).transpose(2, 0, 1)[None]
    logits = network.run(np.ascontiguousarray(pixels, np.float32))[0] + np.float32(shift)
    index = np.arange(logits.size)[::3]
    return Stored(
        logits_f16=logits.astype(np.float16), logits_f32=logits.reshape(-1)[index], logits_idx=index,
        logits_argmax=logits.argmax(0),
    )  # fmt: skip


class Recipe:
    """As much of a recipe as is asked for."""

    labels = LABELS
    default = Inference()
    ms_flip = Inference(scales=(0.5, 1.0), flip=True)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_stored_outputs_are_met_or_missed(precision: str) -> None:
    network, image = Strided(5, 8, 3), rigs.picture((17, 20), 4)
    answer = Collected()
    runtime.compare_golden(answer, rig(), network, Recipe(), image, stored(network, image), precision, quick=False)
    assert not answer.said
    names = [f"logits {precision}, stored", f"default {precision}", f"ms-flip {precision}"]
    assert [row["case"] for row in answer.rows] == names
    wrong = Collected()
    runtime.compare_golden(wrong, rig(), network, Recipe(), image, stored(network, image, 3.0), precision, quick=True)
    assert any("logits: max" in text for text in wrong.said)


def test_labels_of_one_class_are_no_comparison() -> None:
    answer = Collected()
    rigs.judge(answer, "x", {"equal %": 100.0, "clear equal %": 100.0, "clear %": 90.0, "classes": 1})
    assert answer.said == ["x: all pixels have one class: nothing was compared"]
