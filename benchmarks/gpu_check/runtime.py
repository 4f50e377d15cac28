"""The CUDA runtime against the host's: stages, graphs, memory, ownership, threads, and the twelve stored outputs."""

from __future__ import annotations

import importlib.util
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_check import rigs
from benchmarks.gpu_check.check import Answer, Check, Setup
from benchmarks.gpu_check.kernels import seed_of
from benchmarks.gpu_check.needs import RUNTIME
from benchmarks.gpu_check.networks import Network, Strided, Torch
from benchmarks.gpu_check.rigs import Case, GpuRig, Rig
from isnet_trt.pictures.interop import image_from
from isnet_trt.settings import Inference, Preprocess

FIXTURES = Path(__file__).parents[2] / "tests" / "golden"
CALLS = 200
SLACK = 2 << 20
"""Bytes that device memory may differ by: the driver's own pools are of this size."""
SIZES = {"ADE20k": (480, 640), "COCOStuff10k": (480, 640), "CityScapes": (1024, 2048), "LIP": (301, 199)}
"""Dataset -> a source picture's size."""
QUICK = (
    "isnet_resnet50os8_ade20k",
    "isnet_resnet50os8_cityscapes",
    "isnet_resnet101os8_cityscapes",
    "isnet_resnest101os8_lip",
)
"""Every backbone, and stored labels: the second's are those of the picture's size, slide and ms+flip."""


def recipes() -> list[Any]:
    """The published ones."""
    from isnet_trt.recipes import RECIPES

    return [found for name, found in RECIPES.items() if name != "isnet_demo"]


def cases(quick: bool) -> Iterator[Case]:
    """Every distinct way in which a published model shows pictures, at its dataset's size."""
    met: set[Any] = set()
    for recipe in recipes():
        for preset in ("default", "ms-flip"):
            inference = recipe.preset(preset)
            key = (recipe.labels.count, recipe.preprocess, inference)
            if key in met or (quick and preset != "default" and recipe.dataset != "LIP"):
                continue
            met.add(key)
            size = next((size for name, size in SIZES.items() if name.lower() == recipe.dataset.lower()), (480, 640))
            batch = 8 if inference.mode == "slide" else 1
            stride = recipe.architecture.output_stride
            label = f"{recipe.name} {preset}"
            yield Case(label, recipe.labels, recipe.preprocess, inference, size, stride, batch)


def stages(answer: Answer, setup: Setup, rig: Rig | None = None, chosen: list[Case] | None = None) -> None:
    """Everything around the network, eagerly, captured and replayed, against the host on the same small network."""
    rig = rig or GpuRig(setup)
    for case in list(cases(setup.quick)) if chosen is None else chosen:
        network = Strided(case.labels.count, case.stride, seed_of(setup, case.label))
        pipeline = rig.pipeline(network, case)
        try:
            _compare_stages(answer, setup, case, network, pipeline)
        finally:
            pipeline.close()


def _compare_stages(answer: Answer, setup: Setup, case: Case, network: Network, pipeline: Any) -> None:
    with rigs.host(network, case) as segmenter:
        for how, image, made in rigs.three(pipeline, case, seed_of(setup, case.label)):
            if how == "captured" and setup.quick:
                continue
            cells = rigs.agreement(segmenter, image, case, made)
            rigs.judge(answer, f"{case.label}, {how}", cells)
            answer.row(case=case.label, how=how, **cells)
    expected = "CUDA graphs"
    answer.require(
        pipeline.description == expected, f"{case.label}: no CUDA graph was captured: {pipeline.description}"
    )


def graphs(answer: Answer, setup: Setup, rig: Rig | None = None, chosen: Case | None = None) -> None:
    """The replay of a graph gives the bits of the eager run on the same picture."""
    rig, case = rig or GpuRig(setup), chosen or ade()
    network = Strided(case.labels.count, case.stride, setup.seed)
    images = [rigs.picture(case.size, setup.seed + i) for i in range(3)]
    eager = []
    for image in images:  # a new pipeline's first picture is not captured
        pipeline = rig.pipeline(network, case)
        eager.append(pipeline(image_from(image), case.inference))
        pipeline.close()
    pipeline = rig.pipeline(network, case)
    try:
        replayed = [pipeline(image_from(image), case.inference) for image in (*images, *images)]
    finally:
        pipeline.close()
    for number, (made, wanted) in enumerate(zip(replayed, (*eager, *eager), strict=True)):
        answer.require(np.array_equal(made, wanted), f"picture {number % 3}, call {number}: the replay differs")
    owned = len({made.__array_interface__["data"][0] for made in replayed}) == len(replayed)
    answer.require(owned, "two results share memory")
    answer.figure("graphs", pipeline.description)
    answer.figure("calls compared", len(replayed))


def ade() -> Case:
    """ADE's whole picture."""
    return next(case for case in cases(True) if "ade20k default" in case.label)


def memory(answer: Answer, setup: Setup) -> None:
    """Device memory after 200 calls is what it was after three, and after closing what it was before opening."""
    import torch

    rig, case = GpuRig(setup), ade()
    network = Strided(case.labels.count, case.stride, setup.seed)
    image = image_from(rigs.picture(case.size, setup.seed))
    _calls(rig.pipeline(network, case), image, case.inference, 3)  # what is loaded once a process is loaded now
    start = torch.cuda.mem_get_info()[0]
    pipeline = rig.pipeline(network, case)
    for _ in range(3):
        pipeline(image, case.inference)
    open_ = torch.cuda.mem_get_info()[0]
    _calls(pipeline, image, case.inference, CALLS - 3, lambda: answer.figure("free after calls", _free()))
    end = torch.cuda.mem_get_info()[0]
    planned = pipeline.plan(case.size, case.inference).bytes
    answer.figure("free before, bytes", start)
    answer.figure("free while open, bytes", open_)
    answer.figure("free after closing, bytes", end)
    answer.figure("planned, bytes", planned)
    answer.figure("calls", CALLS)
    answer.require(abs(start - end) <= SLACK, f"{start - end} bytes of device memory were not given back")
    answer.require(start - open_ <= planned + 16 * SLACK, f"open it holds {start - open_} bytes, planned are {planned}")


def _free() -> int:
    import torch

    return int(torch.cuda.mem_get_info()[0])


def _calls(pipeline: Any, image: Any, inference: Inference, count: int, then: Callable[[], None] | None = None) -> None:
    try:
        for _ in range(count):
            pipeline(image, inference)
        if then:
            then()
    finally:
        pipeline.close()


def threads(answer: Answer, setup: Setup, rig: Rig | None = None, chosen: Case | None = None, calls: int = 40) -> None:
    """Two pipelines in two threads at once give the labels that each gives alone."""
    rig, case = rig or GpuRig(setup), chosen or ade()
    networks = [Strided(case.labels.count, case.stride, setup.seed + i) for i in range(2)]
    images = [rigs.picture(case.size, setup.seed + i) for i in range(2)]
    alone = [_labels(rig, case, *pair, 1)[0] for pair in zip(networks, images, strict=True)]
    found: list[list[Any]] = [[], []]

    def work(number: int) -> None:
        try:
            found[number] = _labels(rig, case, networks[number], images[number], calls)
        except Exception as error:  # told below: a thread's exception reaches nobody
            found[number] = [error]

    both = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    for number, made in enumerate(found):
        failed = [one for one in made if isinstance(one, Exception)]
        answer.require(not failed, f"thread {number}: {failed}")
        wrong = sum(not np.array_equal(one, alone[number]) for one in made) if not failed else 0
        answer.require(not wrong, f"thread {number}: {wrong} of {len(made)} label maps differ from those made alone")
    answer.figure("calls of each thread", calls)


def _labels(rig: Rig, case: Case, network: Network, image: Any, calls: int) -> list[Any]:
    pipeline = rig.pipeline(network, case)
    try:
        return [pipeline(image_from(image), case.inference) for _ in range(calls)]
    finally:
        pipeline.close()


def fixtures(name: str) -> Any:
    """A module of the stored outputs' folder: ``fill`` or ``check_example``."""
    spec = importlib.util.spec_from_file_location(f"gpu_check_{name}", FIXTURES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def golden(name: str) -> Callable[[Answer, Setup], None]:
    """A check of one recipe: the reference's stored logits and labels, and the host's labels, in fp32 and fp16."""

    def run(answer: Answer, setup: Setup) -> None:
        from benchmarks.weights import filled_checkpoint
        from isnet_trt.training.checkpoint import load_checkpoint, load_model

        rig, stored = GpuRig(setup), np.load(FIXTURES / f"golden_{name}.npz")
        image = fixtures("fill").image(int(stored["seed"]), *map(int, stored["image_hw"]))
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = load_checkpoint(filled_checkpoint(name, Path(folder) / "filled.pth"), name)
        for precision, dtype in (("fp32", "float32"), ("fp16", "float16")):
            recipe = checkpoint.recipe
            stride = recipe.architecture.output_stride
            network = Torch(load_model(checkpoint), recipe.labels.count, stride, dtype)
            compare_golden(answer, rig, network, recipe, image, stored, precision, setup.quick)

    return run


def compare_golden(
    answer: Answer, rig: Rig, network: Network, recipe: Any, image: Any, stored: Any, precision: str, quick: bool
) -> None:
    """The stored logits, through resize, gather and engine on the GPU; then labels of every way of inference."""
    exact = Preprocess(image.shape[:2], keep_ratio=False)

    def case(label: str, inference: Inference) -> Case:
        batch = 4 if inference.mode == "slide" else 1
        return Case(f"{label} {precision}", recipe.labels, exact, inference, image.shape[:2], network.stride, batch)

    whole = case("logits", Inference())
    pipeline = rig.pipeline(network, whole)
    try:
        ((_, logits),) = pipeline.window_logits(image_from(image), whole.inference)
    finally:
        pipeline.close()
    _stored_logits(answer, logits, stored, precision)
    for label, inference, labels in ways(recipe, stored, image.shape[:2], quick):
        _labels_of(answer, rig, network, case(label, inference), image, labels, precision)


def ways(recipe: Any, stored: Any, size: tuple[int, int], quick: bool) -> Iterator[tuple[str, Inference, Any]]:
    """(name, settings, the reference's labels or None): the stored ones, and the recipe's presets."""
    for tag in [key[:-9] for key in stored.files if key.endswith("_settings")]:
        settings = json.loads(str(stored[f"{tag}_settings"]))
        labels = stored[f"{tag}_label"] if tuple(settings["output_size"]) == tuple(size) else None
        yield f"stored {tag}", inference_of(settings), labels
    yield "default", recipe.default, None
    if not quick:
        yield "ms-flip", recipe.ms_flip, None


def inference_of(settings: dict[str, Any]) -> Inference:
    """The stored settings as the runtime's."""
    forward, tta = settings["forward"], settings["tta"]
    slide = forward["mode"] == "slide"
    return Inference(
        forward["mode"],
        tuple(forward["cropsize"]) if slide else None,
        tuple(forward["stride"]) if slide else None,
        tuple(tta["multiscale"]),
        tta["flip"],
        tta["use_probs_before_resize"],
    )


def _stored_logits(answer: Answer, logits: Any, stored: Any, precision: str) -> None:
    bound = fixtures("check_example").BOUNDS[precision]
    std = float(stored["logits_f16"].astype(np.float32).std())
    distance = logits.reshape(-1)[stored["logits_idx"]] - stored["logits_f32"]
    cells = {
        "max": float(np.abs(distance).max()) / std,
        "rms": float(np.sqrt((distance**2).mean())) / std,
        "argmax": float((logits.argmax(0) == stored["logits_argmax"]).mean()),
    }
    answer.row(case=f"logits {precision}, stored", **cells)
    answer.require(cells["max"] <= bound["max"], f"{precision} logits: max {cells['max']:.2g} > {bound['max']}")
    answer.require(cells["rms"] <= bound["rms"], f"{precision} logits: rms {cells['rms']:.2g} > {bound['rms']}")
    # What float16 misses at near ties of the made-up weights: docs/precision.md.
    least = bound["argmax"] if precision == "fp32" else 0.9
    answer.require(cells["argmax"] >= least, f"{precision} logits: {cells['argmax']:.4f} of the labels are equal")


def _labels_of(answer: Answer, rig: Rig, network: Network, case: Case, image: Any, stored: Any, precision: str) -> None:
    pipeline = rig.pipeline(network, case)
    try:
        made = pipeline(image_from(image), case.inference)
    finally:
        pipeline.close()
    with rigs.host(network, case) as segmenter:
        cells = rigs.agreement(segmenter, image, case, made)
    rigs.judge(answer, case.label, cells, precision)
    if stored is not None:
        cells["stored equal %"] = 100 * float((made == stored).mean())
        least = 100 * fixtures("check_example").BOUNDS[precision]["label"]
        answer.require(
            cells["stored equal %"] >= least, f"{case.label}: {cells['stored equal %']:.2f} % of stored labels"
        )
    answer.row(case=case.label, **cells)


NAMES = tuple(sorted(path.stem.removeprefix("golden_") for path in FIXTURES.glob("golden_isnet_*.npz")))
CHECKS = (
    Check("runtime.stages", "everything around the network is the host's", stages, RUNTIME, 400, rank=7),
    Check("runtime.graphs", "replayed graphs give the bits of eager runs; results own memory", graphs, RUNTIME, rank=7),
    Check("runtime.memory", "memory returns to its start after 200 calls", memory, RUNTIME, 120, rank=9),
    Check("runtime.threads", "two threads at once", threads, RUNTIME, 120, rank=9),
    *(
        Check(
            f"golden.{name.removeprefix('isnet_')}", "stored outputs and the host's labels, fp32 and fp16",
            golden(name), RUNTIME, 240, quick=name in QUICK, rank=8,
        )
        for name in NAMES
    ),
)  # fmt: skip
