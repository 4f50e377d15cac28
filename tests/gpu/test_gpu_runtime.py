"""The CUDA runtime against the host's: stages, graphs, memory, threads, and the stored outputs of twelve models."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_files import GOLDEN, NEAR_TIES, load_golden

from isnet_trt.pictures.interop import image_from
from isnet_trt.settings import Inference, Preprocess
from tests.gpu.comparison import Case, ade, agreement, call, cases, host, image, judge
from tests.gpu.networks import Network, Strided, Torch
from tests.gpu.record import Record
from tests.gpu.target import Target

CALLS, CALLS_OF_A_THREAD = 200, 40
SLACK = 2 << 20
"""Bytes that device memory may differ by: the driver's own pools are of this size."""
QUICK = ("resnet50os8_ade20k", "resnet50os8_cityscapes", "resnet101os8_cityscapes", "resnest101os8_lip")
"""Every backbone, and stored labels: the second's are those of the image's size, slide and ms+flip."""
NAMES = sorted(path.stem.removeprefix("golden_isnet_") for path in GOLDEN.glob("golden_isnet_*.npz"))


@pytest.mark.gpu("runtime.stages", 7, 400)
def test_stages(record: Record, target: Target) -> None:
    """Everything around the network, eagerly, captured and replayed, is the host's."""
    for case in [target.case] if target.case else cases(target.quick):
        seed = target.seed_of(case.label)
        network = Strided(case.labels.count, case.stride, seed)
        pipeline = target.pipeline(network, case)
        with host(network, case) as reference:
            for number, how in enumerate(("eager", "captured", "replayed")):
                source = image(case.size, seed + number)
                labels = call(pipeline, source, case)
                if how != "captured" or not target.quick:
                    cells = agreement(reference, source, case, labels)
                    judge(record, f"{case.label}, {how}", cells)
                    record.row(case=case.label, how=how, **cells)
        pipeline.close()
        graphs = pipeline.description == "CUDA graphs"
        record.require(graphs, f"{case.label}: no CUDA graph was captured: {pipeline.description}")


@pytest.mark.gpu("runtime.graphs", 7, 60)
def test_graphs(record: Record, target: Target) -> None:
    """Replayed graphs give the bits of eager runs; results own their memory."""
    case = target.case or ade()
    network = Strided(case.labels.count, case.stride, target.seed)
    images = [image(case.size, target.seed + i) for i in range(3)]
    # A new pipeline's first image is not captured.
    eager = [labels(target, network, case, source)[0] for source in images]
    pipeline = target.pipeline(network, case)
    replayed = [call(pipeline, source, case) for source in (*images, *images)]
    pipeline.close()
    for number, (result, expected) in enumerate(zip(replayed, (*eager, *eager), strict=True)):
        record.require(np.array_equal(result, expected), f"image {number % 3}, call {number}: the replay differs")
    addresses = {result.__array_interface__["data"][0] for result in replayed}
    record.require(len(addresses) == len(replayed), "two results share memory")
    record.figure("graphs", pipeline.description)
    record.figure("calls compared", len(replayed))


def labels(target: Target, network: Network, case: Case, source: Any, calls: int = 1) -> list[Any]:
    """Label maps of an image by a pipeline of its own."""
    pipeline = target.pipeline(network, case)
    try:
        return [call(pipeline, source, case) for _ in range(calls)]
    finally:
        pipeline.close()


@pytest.mark.gpu("runtime.memory", 9, 120)
def test_memory(record: Record, target: Target) -> None:
    """Device memory after 200 calls is what it was after three, and after closing what it was before opening."""
    import torch

    case = target.case or ade()
    network, source = Strided(case.labels.count, case.stride, target.seed), image(case.size, target.seed)
    labels(target, network, case, source, 3)  # what is loaded once a process is loaded now
    free = {"before": torch.cuda.mem_get_info()[0]}
    pipeline = target.pipeline(network, case)
    for number in range(CALLS):
        call(pipeline, source, case)
        if number in (2, CALLS - 1):
            free["while open" if number == 2 else "after calls"] = torch.cuda.mem_get_info()[0]
    pipeline.close()
    free["after closing"] = torch.cuda.mem_get_info()[0]
    planned = pipeline.plan(case.size, case.inference).bytes
    for name, size in free.items():
        record.figure(f"free {name}, bytes", size)
    record.figure("planned, bytes", planned)
    record.figure("calls", CALLS)
    grown, kept = free["while open"] - free["after calls"], free["before"] - free["after closing"]
    record.require(grown <= SLACK, f"{grown} bytes more of device memory are taken after {CALLS} calls than after 3")
    record.require(abs(kept) <= SLACK, f"{kept} bytes of device memory were not given back")
    open_ = free["before"] - free["while open"]
    record.require(open_ <= planned + 16 * SLACK, f"open it holds {open_} bytes, planned are {planned}")


@pytest.mark.gpu("runtime.threads", 9, 120)
def test_threads(record: Record, target: Target) -> None:
    """Two pipelines in two threads at once give the labels that each gives alone."""
    case = target.case or ade()
    pairs = [
        (Strided(case.labels.count, case.stride, target.seed + i), image(case.size, target.seed + i)) for i in (0, 1)
    ]
    alone = [labels(target, network, case, source)[0] for network, source in pairs]
    results: list[list[Any]] = [[], []]

    def work(number: int) -> None:
        with record.part(f"thread {number}"):
            results[number] = labels(target, pairs[number][0], case, pairs[number][1], CALLS_OF_A_THREAD)

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, result in enumerate(results):
        equal = sum(np.array_equal(one, alone[number]) for one in result)
        record.require(
            equal == CALLS_OF_A_THREAD,
            f"thread {number}: {equal} of {CALLS_OF_A_THREAD} label maps are those made alone",
        )
    record.figure("calls of each thread", CALLS_OF_A_THREAD)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.gpu(f"golden.{n}", 8, 240, slow=n not in QUICK), id=n) for n in NAMES],
)
def test_golden(record: Record, target: Target, name: str) -> None:
    """Stored outputs of the reference and the host's labels, with PyTorch's network in fp32 and fp16."""
    from benchmarks.synthetic import filled_checkpoint
    from isnet_trt.training.checkpoint import load_checkpoint, load_model

    name = f"isnet_{name}"
    stored = np.load(GOLDEN / f"golden_{name}.npz")
    source = load_golden("fill").image(int(stored["seed"]), *map(int, stored["image_hw"]))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = load_checkpoint(filled_checkpoint(name, Path(folder) / "filled.pth"), name)
    recipe = checkpoint.recipe
    for precision, dtype in (("fp32", "float32"), ("fp16", "float16")):
        stride = recipe.architecture.output_stride
        network = Torch(load_model(checkpoint), recipe.labels.count, stride, dtype)
        compare_golden(record, target, network, recipe, source, stored, precision)


def compare_golden(
    record: Record, target: Target, network: Network, recipe: Any, source: Any, stored: Any, precision: str
) -> None:
    """The stored logits, through resize, gather and network on the GPU; then labels of every way of inference."""
    exact = Preprocess(source.shape[:2], keep_ratio=False)
    least = load_golden("check_example").BOUNDS[precision]["label"]
    for label, inference, expected in ways(recipe, stored, source.shape[:2], target.quick):
        batch = 4 if inference.mode == "slide" else 1
        size = source.shape[:2]
        case = Case(f"{label} {precision}", recipe.labels, exact, inference, size, network.stride, batch)
        if label == "logits":
            pipeline = target.pipeline(network, case)
            ((_, logits),) = pipeline.window_logits(image_from(source), inference)
            pipeline.close()
            compare_logits(record, logits, stored, precision, recipe.name)
            continue
        result = labels(target, network, case, source)[0]
        with host(network, case) as reference:
            cells = agreement(reference, source, case, result)
        judge(record, case.label, cells, precision)
        if expected is not None:
            cells["stored equal %"] = equal = 100 * float((result == expected).mean())
            record.require(equal >= 100 * least, f"{case.label}: {equal:.2f} % of stored labels")
        record.row(case=case.label, **cells)


def ways(recipe: Any, stored: Any, size: tuple[int, ...], quick: bool) -> Iterator[tuple[str, Inference, Any]]:
    """(name, settings, the reference's labels or None): logits, the stored settings, and the recipe's presets."""
    yield "logits", Inference(), None
    for tag in [key[:-9] for key in stored.files if key.endswith("_settings")]:
        settings = json.loads(str(stored[f"{tag}_settings"]))
        expected = stored[f"{tag}_label"] if tuple(settings["output_size"]) == tuple(size) else None
        yield f"stored {tag}", inference_of(settings), expected
    yield "default", recipe.default, None
    if not quick:
        yield "ms-flip", recipe.ms_flip, None


def inference_of(settings: dict[str, Any]) -> Inference:
    """The stored settings as the runtime's."""
    forward, tta = settings["forward"], settings["tta"]
    window, stride = (
        (tuple(forward[key]) for key in ("cropsize", "stride")) if forward["mode"] == "slide" else (None, None)
    )
    scales = tuple(tta["multiscale"])
    return Inference(forward["mode"], window, stride, scales, tta["flip"], tta["use_probs_before_resize"])


def compare_logits(record: Record, logits: Any, stored: Any, precision: str, name: str) -> None:
    """The stored logits' own bounds; what float16 misses at near ties of synthetic weights: docs/precision.md."""
    bound = dict(load_golden("check_example").BOUNDS[precision])
    if precision != "fp32":
        bound["argmax"] = 0.9 if name in NEAR_TIES else bound["argmax"]
    std = float(stored["logits_f16"].astype(np.float32).std())
    distance = logits.reshape(-1)[stored["logits_idx"]] - stored["logits_f32"]
    cells = {
        "max": float(np.abs(distance).max()) / std,
        "rms": float(np.sqrt((distance**2).mean())) / std,
        "argmax": float((logits.argmax(0) == stored["logits_argmax"]).mean()),
    }
    record.row(case=f"logits {precision}, stored", **cells)
    for key in ("max", "rms"):
        record.require(cells[key] <= bound[key], f"{precision} logits: {key} {cells[key]:.2g} > {bound[key]}")
    equal = cells["argmax"]
    record.require(equal >= bound["argmax"], f"{precision} logits: {equal:.4f} of the labels are equal")
