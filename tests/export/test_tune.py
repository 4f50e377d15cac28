"""Tuning for real under ONNX Runtime: search, bound, budget, interruption, and what becomes of the results."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from own_pictures import write_pngs

from isnet_trt import Segmenter
from isnet_trt.bundle import CUDA_ONNX, read_bundle
from isnet_trt.engines.select import Choice
from isnet_trt.errors import BuildError, EngineError, ParityError, SettingsError
from isnet_trt.export import EngineOptions, PrecisionOptions, TuneOptions, build, tune, tune_trial
from isnet_trt.export.tune_candidates import Candidate
from isnet_trt.export.tune_state import SCHEMA, STATE, State, Store, Trial, exclusive, winner
from isnet_trt.settings import Inference, Preprocess

SMALL = TuneOptions(size=(40, 56), preset="ms-flip")
FIRST = Candidate("fp32", threads=2)


@pytest.fixture(autouse=True)
def short(graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rounds, two cores, small pictures in two windows, and the graph that the session has exported already."""
    building = importlib.import_module("isnet_trt.export.sources.checkpoint")
    load = building.load_checkpoint

    def load_small(*arguments: Any) -> Any:
        loaded = load(*arguments)
        changes = {"preprocess": Preprocess((56, 40)), "ms_flip": Inference("slide", (40, 40), (24, 24))}
        return dataclasses.replace(loaded, recipe=dataclasses.replace(loaded.recipe, **changes))

    monkeypatch.setattr(building, "load_checkpoint", load_small)
    monkeypatch.setattr("isnet_trt.export.network_inputs._LONG_SIDE", 48)
    monkeypatch.setattr(building, "export_graph", lambda *arguments: graph)
    for name, value in {"WARM_CALLS": 1, "FEWEST_ROUNDS": 1, "MOST_ROUNDS": 2}.items():
        monkeypatch.setattr(tune_trial, name, value)
    for module in ("export.tune_candidates", "export.tune_trial", "export.tune", "runtime.opening"):
        monkeypatch.setattr(sys.modules[f"isnet_trt.{module}"], "usable_cores", lambda: 2)
    monkeypatch.setattr("isnet_trt.export.tune_candidates.BATCHES", (2,))
    monkeypatch.setattr("isnet_trt.export.samples.COMPARED", 1)


def tuned(
    checkpoint: Path, out: Path, options: TuneOptions = SMALL, lines: list[str] | None = None, **more: Any
) -> Path:
    engine, say = EngineOptions("onnxruntime"), (lambda text: None) if lines is None else lines.append
    return build(checkpoint, out, engine=engine, tune=options, say=say, **more).folder


def test_a_bundle_for_the_cuda_provider_is_not_tuned(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a build's ``auto`` takes the provider as well."""
    chosen = Choice("onnxruntime", "some GPU with ONNX Runtime's CUDA provider: no TensorRT", on_gpu=True)
    monkeypatch.setattr("isnet_trt.export.build_bundle.choose", lambda kind, gpu: chosen)
    monkeypatch.setattr("isnet_trt.export.build_bundle.include_kernels", lambda *arguments: False)  # half a minute
    with pytest.raises(SettingsError, match=r"times onnxruntime on a CPU.*CUDA provider: no TensorRT\); leave out"):
        build(checkpoint, tmp_path / "out", tune=SMALL)
    assert list(tmp_path.iterdir()) == []
    said: list[str] = []
    bundle = build(checkpoint, tmp_path / "out", say=said.append)
    assert bundle.manifest.engine.file == CUDA_ONNX
    assert any(chosen.reason in line for line in said)


def rows(bundle: Path) -> list[dict[str, Any]]:
    return json.loads((bundle / "tuning.json").read_text("utf-8"))["candidates"]


def test_the_fastest_becomes_the_bundle(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, lines = tune.time_calls, []

    def single_thread_wins(call: Any, segmenter: Segmenter, reference: Segmenter | None, limit: float) -> Any:
        """The calls are real; their order of speed is not left to a busy machine."""
        assert segmenter(call.image).labels.shape == (40, 56)
        samples = zip((segmenter, reference or segmenter), real(call, segmenter, reference, limit), strict=True)
        return [[s.batch * (0.5 if "1 thread" in s.description else 1.0)] * len(taken) for s, taken in samples]

    monkeypatch.setattr(tune, "time_calls", single_thread_wins)
    bundle = read_bundle(tuned(checkpoint, tmp_path / "bundle", lines=lines))
    table = rows(bundle.folder)
    tried = [(row["candidate"]["batch"], row["candidate"]["threads"], row["relative"]) for row in table]
    assert tried[:3] == [(1, 2, 1.0), (2, 2, 2.0), (1, 1, 0.5)]
    assert [row["chosen"] for row in table].index(True) == 2
    assert all(row["agreement"] > 0.99 and row["rounds"] >= 1 and row["quartiles"] for row in table)
    found = bundle.manifest.tuning
    assert found is not None
    assert (found.batch, found.threads, found.cores, found.size, found.seconds) == (1, 1, 2, (40, 56), 0.5)
    with (bundle.folder / "tuning.csv").open(newline="") as stream:
        assert [row["threads"] for row in csv.DictReader(stream)] == [str(threads) for _, threads, _ in tried]
    page = (bundle.folder / "precision.md").read_text("utf-8")
    assert "## Tuning" in page
    assert "| fp32, batch 1, threads 1 | 500 ms (500 … 500) | 0.500 | 100.000 % |" in page
    assert {"tuning.json", "tuning.csv", "precision.png"} <= set(bundle.manifest.files)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert sum(line.startswith("tried") for line in lines) == len(table)
    with Segmenter.open(bundle.folder) as segmenter:
        assert "1 thread;" in segmenter.description
    with Segmenter.open(bundle.folder, threads=2) as segmenter:
        assert "2 threads;" in segmenter.description
    monkeypatch.setattr("isnet_trt.runtime.opening.usable_cores", lambda: 3)  # another machine has its own optimum
    with Segmenter.open(bundle.folder) as segmenter:
        assert "1 thread;" not in segmenter.description


def test_a_batch_is_the_default_of_opening(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "time_calls", lambda call, segmenter, *rest: ([1 / segmenter.batch], [1.0]))
    bundle = tuned(checkpoint, tmp_path / "bundle")
    with Segmenter.open(bundle) as segmenter:
        assert segmenter.batch == 2
        assert segmenter(np.zeros((33, 47, 3), np.uint8)).labels.shape == (33, 47)


def test_a_candidate_over_the_bound_never_wins(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [np.random.default_rng(seed).integers(0, 255, (48, 64, 3), np.uint8) for seed in (1, 2)]
    street = write_pngs(tmp_path / "street", pictures)
    agreement = tune_trial.References.agreement

    def a_label_less(self: Any, segmenter: Segmenter) -> float:
        """The random weights give labels that eight bits never change: one of them is taken off."""
        return agreement(self, segmenter) - (0.04 if segmenter.about.precision == "int8" else 0)

    def eight_bits_are_fast(call: Any, segmenter: Segmenter, *rest: Any) -> Any:
        return [0.1 if segmenter.about.precision == "int8" else 1.0], [1.0]

    monkeypatch.setattr(tune_trial.References, "agreement", a_label_less)
    monkeypatch.setattr(tune, "time_calls", eight_bits_are_fast)
    precision = PrecisionOptions(calib=street, calib_inputs=2, keep=("backbone_net.layer4",))
    bundle = read_bundle(tuned(checkpoint, tmp_path / "out", TuneOptions(accuracy=0.99), precision=precision))
    (refused,) = [row for row in rows(bundle.folder) if row["status"] == "over the bound"]
    assert refused["candidate"]["precision"] == "int8"
    assert (refused["agreement"], refused["relative"]) == (0.96, 0.1)
    assert refused["reason"] == "96.000 % of the labels are equal, the bound is 99.000 %"
    assert bundle.manifest.precision == "fp32"
    assert bundle.manifest.tuning is not None
    assert bundle.manifest.tuning.size == (48, 64)


def test_the_budget_is_kept(checkpoint: Path, tmp_path: Path) -> None:
    table = rows(tuned(checkpoint, tmp_path / "bundle", dataclasses.replace(SMALL, budget=1e-3)))
    assert [row["status"] for row in table] == ["within the bound", "out of budget", "out of budget"]
    assert "0 s are left" in table[1]["reason"]
    assert table[0]["chosen"]


def test_an_interrupted_tuning_goes_on(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = [], tune.time_calls

    def interrupted(call: Any, segmenter: Segmenter, *rest: Any) -> Any:
        calls.append((segmenter.batch, segmenter.description))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(call, segmenter, *rest)

    monkeypatch.setattr(tune, "time_calls", interrupted)
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        tuned(checkpoint, tmp_path / "bundle", lines=lines)
    assert not (tmp_path / "bundle").exists()
    assert any("1 candidates are kept in" in line and "the same command goes on" in line for line in lines)
    stored = json.loads((tmp_path / "bundle.tuning" / STATE).read_text("utf-8"))
    assert [trial["candidate"]["threads"] for trial in stored["trials"]] == [2]
    table = rows(tuned(checkpoint, tmp_path / "bundle", lines=lines))
    assert any("going on after 1 candidates" in line for line in lines)
    assert calls[1] == calls[2]  # the one that was interrupted, and none before it
    assert calls.count(calls[0]) == 1
    assert table[0]["median"] == stored["trials"][0]["median"]
    assert not (tmp_path / "bundle.tuning").exists()


def test_what_fails_is_left_out(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that cannot run, and a winner that the parity gate refuses."""
    real, gate, refused = tune_trial.Workshop.open, tune.compare_with_reference, []

    def failing(self: Any, candidate: Candidate) -> Segmenter:
        if candidate.batch == 2:
            raise EngineError("no memory\nfor it")
        return real(self, candidate)

    def refusing_once(*arguments: Any) -> Any:
        if not refused:
            refused.append(arguments)
            raise ParityError("the engine gives NaN")
        return gate(*arguments)

    monkeypatch.setattr(tune_trial.Workshop, "open", failing)
    monkeypatch.setattr(tune, "compare_with_reference", refusing_once)
    table = rows(tuned(checkpoint, tmp_path / "bundle"))
    assert {row["reason"] for row in table if row["status"] == "failed"} == {"no memory for it", "the engine gives NaN"}
    (chosen,) = [row for row in table if row["chosen"]]
    assert chosen["status"] == "within the bound"


def test_nothing_within_the_bound(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_trial.References, "agreement", lambda self, segmenter: 0.5)
    monkeypatch.setattr(tune_trial, "_KEPT_GRAPHS", 1)
    options = dataclasses.replace(SMALL, accuracy=0.9)
    with pytest.raises(BuildError, match=r"(?s)no candidate is within the bound.*50\.000 % of the labels are equal"):
        tuned(checkpoint, tmp_path / "bundle", options)
    assert not (tmp_path / "bundle").exists()


TRIAL = Trial(FIRST, "within the bound", "", 1.0, 0.25, (0.2, 0.3), 3, 1.0, 2.0, 1.0)


def stored(folder: Path, **changes: Any) -> Store:
    store = Store.open(folder, {"device": "CPU", "checkpoint": "ab"})
    store.state = State(**{**vars(State(SCHEMA, store.state.identity, (TRIAL,), 7.5)), **changes})
    store.save()
    store.bundle(FIRST).mkdir()
    return store


def test_the_state_is_read_back(tmp_path: Path) -> None:
    before = stored(tmp_path / "t", current=dataclasses.replace(FIRST, batch=2), attempts=1)
    again = Store.open(tmp_path / "t", {"device": "CPU", "checkpoint": "ab"})
    assert again.state == before.state
    assert not again.notes
    assert again.bundle(FIRST).is_dir()
    again.remove()
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "damaged"),
        (lambda text: text.replace("0.25", "0.15"), "its checksum differs"),
        (lambda text: text.replace('"ab"', '"cd"'), "damaged"),
        (lambda text: text.replace('"trials"', '"tries"'), "unknown entries|lacks"),
        (lambda text: "[]", "damaged"),
        (lambda text: "[" * 100_000, "damaged"),
    ],
)
def test_a_state_that_is_not_whole_is_not_used(tmp_path: Path, change: Any, message: str) -> None:
    path = stored(tmp_path).folder / STATE
    path.write_text(change(path.read_text("utf-8")), "utf-8")
    store = Store.open(tmp_path, {"device": "CPU", "checkpoint": "ab"})
    assert store.state.trials == ()
    (note,) = store.notes
    assert str(path) in note
    assert re.search(message, note)
    assert not store.bundle(FIRST).exists()


def test_a_state_of_another_checkpoint_is_not_used(tmp_path: Path) -> None:
    stored(tmp_path)
    store = Store.open(tmp_path, {"device": "GPU", "checkpoint": "cd"})
    assert store.state.trials == ()
    assert "it is of another device, checkpoint" in store.notes[0]


def test_one_process_tunes_at_a_time(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(BuildError, match="another process is tuning into"), exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass


def test_a_tuning_that_may_not_start_leaves_the_bundles_of_the_other(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / f"bundle{tune.TUNING}"
    with exclusive(folder):
        store = stored(folder)  # of another checkpoint
        with pytest.raises(BuildError, match="another process is tuning into"):
            tuned(checkpoint, tmp_path / "bundle")
        assert store.bundle(FIRST).is_dir()
        assert (folder / STATE).is_file()


def test_a_candidate_that_ends_the_process_is_not_tried_for_ever(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while a candidate is tried, the tuning tries it once more, and then goes on without it."""
    monkeypatch.setattr(tune, "time_calls", lambda *arguments: ([1.0], [1.0]))
    real = tune.Search._measured

    def killed(self: Any, candidate: Candidate) -> Trial:
        if candidate.batch == 2:
            raise SystemExit  # passes every handler, as a kill does: nothing is written after it
        return real(self, candidate)

    monkeypatch.setattr(tune.Search, "_measured", killed)
    for _ in range(2):
        with pytest.raises(SystemExit):
            tuned(checkpoint, tmp_path / "bundle")
    table = rows(tuned(checkpoint, tmp_path / "bundle"))
    assert [row["reason"] for row in table if row["status"] == "failed"] == [
        "the process ended 2 times while this was tried"
    ]


def test_the_winner_is_the_fastest_within_the_bound() -> None:
    fast = dataclasses.replace(TRIAL, status="over the bound", relative=0.1)
    better = dataclasses.replace(TRIAL, relative=0.7)
    assert winner((TRIAL, fast, better)) is better
    assert winner((fast,)) is None
