"""Contenders side by side, in real processes: the same answer first, gaps and refusals named, the record's shape."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import small_bundle
from bench_bundles import tiny

from benchmarks.peers import Missing, Setup
from benchmarks.rounds import Case, agreement, measure
from benchmarks.worker import Contender
from isnet_trt import Inference
from isnet_trt.bundle import ENGINE
from isnet_trt.engines.info import EngineInfo
from isnet_trt.settings import Preprocess

IMAGE = np.random.default_rng(5).integers(0, 256, (61, 89, 3), np.uint8)


def case(rounds: int = 2, **about: object) -> Case:
    fields = {"inference": Inference(), "preprocess": Preprocess((97, 65)), "rounds": rounds, **about}
    return Case("tiny", IMAGE, **fields)  # type: ignore[arg-type]


def ours(name: str, folder: Path) -> Setup:
    return Setup(name, "bundle", 1, bundle=folder)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("bundles") / "tiny")


def test_a_bundle_against_itself(bundle: Path) -> None:
    record = measure(case(rounds=12), [ours("one", bundle), ours("two", bundle)])
    assert [c["status"] for c in record["contenders"]] == ["timed", "timed"]
    assert [c["agreement"]["all"] for c in record["contenders"]] == [1.0, 1.0]
    assert record["labels_of"] == "one"
    (ratio,) = record["ratios"]
    assert (ratio["of"], ratio["over"], ratio["n"]) == ("two", "one", 12)
    # Round by round; that the two take as long would hold on an idle machine alone.
    first, second = record["contenders"]
    by_round = np.divide(first["seconds"], second["seconds"])
    assert (ratio["least"], ratio["greatest"]) == (pytest.approx(by_round.min()), pytest.approx(by_round.max()))
    assert ratio["least"] < 2.0
    assert ratio["greatest"] > 0.5
    assert list(first["stages"]) == ["read", "resize", "gather", "engine", "merge", "other"]
    assert first["cores_busy"] > 0
    assert first["windows_per_s"] == first["images_per_s"] == 1 / first["summary"]["p50"]
    assert first["memory"]["peak"] > first["memory"]["loaded"] > 10 * 2**20
    assert record["warnings"] == [w for w in record["warnings"] if "busy" in w]


def test_planted_wrong_labels_are_refused_and_not_timed(bundle: Path, tmp_path: Path) -> None:
    wrong = tiny(tmp_path / "wrong", gain=-1.0)
    record = measure(case(), [ours("right", bundle), ours("wrong", wrong)])
    right, refused = record["contenders"]
    assert right["status"] == "timed"
    assert refused["status"] == "refused"
    assert "other labels" in refused["why"]
    assert "seconds" not in refused
    assert record["ratios"] == []


def test_a_bound_of_its_own_lets_a_lower_precision_pass(bundle: Path, tmp_path: Path) -> None:
    wrong = tiny(tmp_path / "wrong", gain=-1.0)
    record = measure(case(), [ours("right", bundle), ours("rough", wrong)], {"rough": 0.0})
    assert [c["status"] for c in record["contenders"]] == ["timed", "timed"]


def test_what_cannot_run_is_a_gap_and_the_rest_runs(bundle: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "gpu"
    small_bundle.write_bundle(foreign, EngineInfo("tensorrt", "10.0", ENGINE, ("8.6",), "some GPU", "1"))
    broken = tmp_path / "no.pth"
    broken.write_bytes(b"no checkpoint")
    setups = [
        ours("gpu", foreign),
        ours("ours", bundle),
        Setup("checkout", "checkout", 1, ckpt=broken),
        Setup("abacus", "abacus", 1, ckpt=broken),
        Setup("pytorch", "pytorch", 1, ckpt=broken),
        Setup("reference", "reference", 1),
    ]
    record = measure(case(rounds=1), setups)
    (timed,) = record["contenders"]
    assert (timed["name"], timed["status"]) == ("ours", "timed")
    assert sum(timed["stages"].values()) == pytest.approx(timed["summary"]["p50"])  # medians of one round
    why = {gap["what"]: gap["why"] for gap in record["gaps"]}
    assert "TensorRT" in why["gpu"] or "tensorrt" in why["gpu"]
    assert "--reference" in why["checkout"]
    assert "no peer is called 'abacus'" in why["abacus"]
    assert "no.pth" in why["pytorch"]
    assert "--ckpt" in why["reference"]


def test_a_contender_that_fails_on_the_picture_is_named(bundle: Path, tmp_path: Path) -> None:
    threes = tiny(tmp_path / "threes", batch=3)
    record = measure(case(), [ours("threes", threes), ours("one", bundle)])
    failed, good = record["contenders"]
    assert failed["status"] == "refused"
    assert "failed: ImageError: an image of 61x89 cannot be segmented" in failed["why"]
    assert good["status"] == "timed"


def test_a_contender_that_died_between_two_runs_is_named(bundle: Path) -> None:
    with Contender(ours("one", bundle)) as contender:
        assert contender.process is not None
        assert contender.process.pid is not None
        os.kill(contender.process.pid, signal.SIGKILL)
        for _ in range(2):  # the second call finds the pool broken
            with pytest.raises(Missing, match="ended with status -9"):
                contender.run(IMAGE, Inference())


def test_first_run_counts_where_it_is_told_to(bundle: Path) -> None:
    record = measure(case(rounds=3, count_first=True), [ours("one", bundle), ours("two", bundle)])
    assert [len(c["seconds"]) for c in record["contenders"]] == [3, 3]
    assert record["first_counts"]


def test_agreement_counts_clear_pixels() -> None:
    labels, wanted = np.array([[1, 2, 3]]), np.array([[1, 2, 4]])
    assert agreement(labels, wanted, np.array([[True, True, False]])) == {
        "all": pytest.approx(2 / 3),
        "clear": 1.0,
        "clear_share": pytest.approx(2 / 3),
    }
    assert agreement(labels, wanted[:, :2], None)["clear"] == 0.0
    assert agreement(labels, wanted, np.zeros((1, 3), bool))["clear"] == pytest.approx(2 / 3)
