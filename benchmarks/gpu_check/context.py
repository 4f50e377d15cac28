"""The context operations as an engine calls them: through the runtime's host side, and as plugins beside the body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu_check import engines, rtx
from benchmarks.gpu_check.check import Answer, Check, Setup, part
from benchmarks.gpu_check.context_trials import (
    SCALE,
    AttentionCase,
    AttentionTrial,
    PoolCase,
    PoolTrial,
    multiprocessors,
)
from benchmarks.gpu_check.families import FAMILIES, Family
from benchmarks.gpu_check.forms import Ahead, Form, forms
from benchmarks.gpu_check.kernels import compare, own_form, seed_of
from benchmarks.gpu_check.needs import KERNELS
from benchmarks.gpu_check.place import device
from benchmarks.gpu_check.trial import Output

FEATURES, WIDTH = 512, 256
BATCH, CLASSES, HEIGHT, SIDE = 2, 19, 33, 41
"""Of the small head that is built both ways; with ``real`` it is as large as a window of Cityscapes."""
ERRORS = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 8e-2}
"""Precision -> the most that plugin and native form may differ, relatively: both round, in other places."""


class HostedAttention(AttentionTrial):
    """`isnet_trt.cuda.context_ops.Attention`, with its own workspace, poisoned and guarded like a result."""

    def __init__(self, form: Form, case: AttentionCase, dtype: str, seed: int) -> None:
        from isnet_trt.cuda.context_ops import Attention

        super().__init__(form, case, dtype, seed)
        self._operation = Attention(case.batch, case.queries, case.keys, case.width, dtype)
        self._workspace = workspace(form, self._operation.workspace())
        self.outputs = (self._out, self._workspace)

    def launch(self) -> None:
        """See `trial.Trial.launch`."""
        tensors = {"q": self.q, "k": self.k, "v": self.v, "bias": self.bias, "out": self._out.tensor}
        self._operation.launch(
            launcher(self._form, self._model), stream(self._form), multiprocessors(self._form), SCALE,
            **addresses(workspace=self._workspace.tensor, **tensors),
        )  # fmt: skip


class HostedPool(PoolTrial):
    """`isnet_trt.cuda.context_ops.Pool`, likewise."""

    def __init__(self, form: Form, case: PoolCase, dtype: str, seed: int) -> None:
        from isnet_trt.cuda.context_ops import Pool

        super().__init__(form, case, dtype, seed)
        self._operation = Pool(case.batch, case.classes, case.positions, case.channels, dtype, dtype)
        self._workspace = workspace(form, self._operation.workspace())
        self.outputs = (self._held["centres"], self._held["log_counts"], self._workspace)

    def launch(self) -> None:
        """See `trial.Trial.launch`."""
        tensors = {"logits": self.logits, "features": self.features, "workspace": self._workspace.tensor}
        tensors |= {name: self._held[name].tensor for name in ("centres", "log_counts")}
        self._operation.launch(
            launcher(self._form, "150"), stream(self._form), multiprocessors(self._form), **addresses(**tensors)
        )
        # The labels are the first of the workspace.
        size = self._held["labels"].tensor.numel()
        first = self._workspace.tensor[:size].view(dtype=self._held["labels"].tensor.dtype)
        self._held["labels"].tensor.copy_(first.view_as(self._held["labels"].tensor))


def workspace(form: Form, size: int) -> Output:
    """So many bytes and guards around them."""
    return Output(form.device, (-(-size // 4),), "fp32")


def addresses(**tensors: Any) -> dict[str, int]:
    """Where each tensor lies."""
    return {name: tensor.data_ptr() for name, tensor in tensors.items()}


def launcher(form: Any, model: str) -> Any:
    """The form's kernels as the runtime takes them."""
    return form.kernels(model)


def stream(form: Form) -> int:
    """PyTorch's current stream."""
    import torch

    return int(torch.cuda.current_stream().cuda_stream) if form.device == device() else 0


def hosted() -> tuple[Family, Family]:
    """The two families, launched by the runtime's host side."""
    cases = {family.name: family for family in FAMILIES}
    attention, pool = cases["attention"], cases["region_pool"]
    # How many parts there are is the host side's own choice.
    return (
        Family("attention, host side", HostedAttention, attention.odd, attention.real),
        Family("region_pool, host side", HostedPool, pool.odd, pool.real),
    )


def host_side(answer: Answer, setup: Setup) -> None:
    """Launches, parts and workspace as the plugins have them, on every form compiled ahead of time."""
    ahead = [form for form in forms(setup) if isinstance(form, Ahead)]
    for family in hosted():
        compare(answer, setup, family, ahead, (*family.odd, *(family.real[:1] if setup.quick else family.real)))


def head(
    dtype: str, seed: int, batch: int = BATCH, classes: int = CLASSES, size: tuple[int, int] = (HEIGHT, SIDE)
) -> bytes:
    """The two context modules around random weights, as the exporter makes them: nodes of our domain with bodies.

    Input ``image``: features (batch, 512, h, w) float32; output ``logits`` (batch, classes, h, w) float32.
    """
    import onnx
    from onnx import TensorProto, helper

    from isnet_trt.export import functions

    kind = getattr(TensorProto, engines.FLOATS[dtype])
    rng, positions = np.random.default_rng(seed), size[0] * size[1]
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=kind),
        helper.make_node("Conv", ["x", "w_coarse"], ["coarse"]),
        helper.make_node("Reshape", ["coarse", "flat_classes"], ["scores"]),
        helper.make_node("Reshape", ["x", "flat"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["features"], perm=[0, 2, 1]),
        helper.make_node(
            "RegionPool", ["scores", "features"], ["centres", "log_counts"], "pool", domain=functions.DOMAIN
        ),
        *(helper.make_node("MatMul", ["features", f"w_{n}"], [n]) for n in ("q", "k", "v")),
        *(helper.make_node("MatMul", ["centres", f"w_{n}"], [f"centre_{n}"]) for n in ("k", "v")),
        _attention("image_level", ["q", "k", "v", "no_bias"], "near"),
        _attention("semantic_level", ["q", "centre_k", "centre_v", "log_counts"], "far"),
        helper.make_node("Concat", ["near", "far"], ["both"], axis=2),
        helper.make_node("MatMul", ["both", "w_out"], ["y"]),
        helper.make_node("Transpose", ["y"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["turned", "back"], ["z"]),
        helper.make_node("Cast", ["z"], ["logits"], to=TensorProto.FLOAT),
    ]  # fmt: skip
    shapes = {"w_coarse": (classes, FEATURES, 1, 1), "w_out": (2 * WIDTH, classes)}
    shapes |= {f"w_{n}": (FEATURES, WIDTH) for n in ("q", "k", "v")}
    held = [engines.constant(name, rng.standard_normal(s) / np.sqrt(FEATURES), kind) for name, s in shapes.items()]
    held.append(engines.constant("no_bias", np.zeros((batch, positions)), TensorProto.FLOAT))
    for name, shape in {
        "flat_classes": [batch, classes, positions],
        "flat": [batch, FEATURES, positions],
        "back": [batch, classes, *size],
    }.items():
        held.append(helper.make_tensor(name, TensorProto.INT64, [len(shape)], shape))
    inputs, outputs = {"image": (batch, FEATURES, *size)}, {"logits": (batch, classes, *size)}
    model = onnx.load_from_string(engines.graph_of(nodes, inputs, outputs, held))
    functions.attach(model, "plain")
    return bytes(model.SerializeToString())


def _attention(name: str, inputs: list[str], output: str) -> Any:
    from onnx import helper

    from isnet_trt.export import functions

    return helper.make_node("ContextAttention", inputs, [output], name, domain=functions.DOMAIN, scale=SCALE)


def plugins(kind: str) -> Callable[[Answer, Setup], None]:
    """The same head as an engine with plugins and one without: equal, replayed from a graph equal, and both timed."""

    def run(answer: Answer, setup: Setup) -> None:
        from isnet_trt.engines.table import library as described

        library = described(kind).load()
        target = rtx.running_target(setup) if kind == "tensorrt-rtx" else "default"
        answer.figure("target", target)
        sizes = {
            "small": (BATCH, CLASSES, (HEIGHT, SIDE)),
            "small, one picture": (1, CLASSES, (HEIGHT, SIDE)),  # the native form of several is not always built
            "Cityscapes x2": (2, 19, (64, 128)),
            "ADE": (1, 150, (64, 86)),
        }
        for name, size in list(sizes.items())[: 2 if setup.quick else None]:
            for dtype in engines.FLOATS:
                with part(answer, f"{name} {dtype}"):
                    _both(answer, setup, library, target, dtype, name, size)

    return run


def _both(answer: Answer, setup: Setup, library: Any, target: str, dtype: str, name: str, size: tuple) -> None:
    import torch

    from isnet_trt.cuda import plugins as ours
    from isnet_trt.engines.tensorrt_rtx import LIBRARY

    model = head(dtype, seed_of(setup, name, dtype), *size)
    wanted = None if target == "default" else target
    native = None
    with part(answer, f"{name} {dtype}, native form", engines.BuildFailed):
        native = engines.Loaded(library, engines.build(library, model, wanted))
    if library.__name__ == LIBRARY.module:
        LIBRARY.allow_plugins(library)
    kernels = own_form(setup).kernels("150")  # type: ignore[attr-defined]
    with ours.kernels_for(library, kernels, torch.cuda.get_device_properties(0).multi_processor_count) as host:
        try:
            plugged = engines.Loaded(library, engines.build(library, model, wanted))
        except engines.BuildFailed as failure:
            answer.wrong(f"{name} {dtype}: {failure}; the plugins say: {'; '.join(host.failures) or 'nothing'}")
            return
    generator = torch.Generator(device()).manual_seed(seed_of(setup, name, "image"))
    image = torch.randn((size[0], FEATURES, *size[2]), generator=generator, device=device())
    cells = _measured(answer, f"{name} {dtype}", native, plugged, image, ERRORS[dtype])
    for text in host.failures:
        answer.wrong(f"{name} {dtype}: a plugin says: {text}")
    answer.row(case=name, precision=dtype, **cells)


def _measured(answer: Answer, what: str, native: Any | None, plugged: Any, image: Any, bound: float) -> dict[str, Any]:
    """Cells of a row; those about the native form only where it was built."""
    import torch

    pair = {name: engine for name, engine in (("native", native), ("plugin", plugged)) if engine is not None}
    outs = {name: engine.bind(image) for name, engine in pair.items()}
    for engine in pair.values():
        engine.run()
    torch.cuda.synchronize()
    cells: dict[str, Any] = {}
    if native is not None:
        wanted, made = outs["native"].double(), outs["plugin"].double()
        cells["difference"] = error = float((made - wanted).norm() / wanted.norm())
        answer.require(error <= bound, f"{what}: plugin and native form differ by {error:.2g} (at most {bound:.2g})")
    answer.require(
        bool(outs["plugin"].isfinite().all()), f"{what}: the plugin's engine gives values that are no numbers"
    )
    replayed = plugged.replays_equal()
    answer.require(replayed is not False, f"{what}: the replay of a CUDA graph gives another result than the eager run")
    cells["replay equal"] = "no graph" if replayed is None else replayed
    return cells | {f"{name} µs": 1e6 * engine.seconds() for name, engine in pair.items()}


def plugins_ahead(answer: Answer, setup: Setup) -> None:
    """Engines with plugins are built for every target without a GPU, and have them in their layers."""
    from isnet_trt.cuda import plugins as ours
    from isnet_trt.engines.tensorrt_rtx import LIBRARY

    library = LIBRARY.load()
    LIBRARY.allow_plugins(library)
    for dtype in engines.FLOATS:
        model = head(dtype, setup.seed)
        for target in rtx.TARGETS[1:2] if setup.quick else rtx.TARGETS[1:]:
            native = b""
            with part(answer, f"{dtype} for {target}, native form", engines.BuildFailed):
                native = engines.build(library, model, target)
            with part(answer, f"{dtype} for {target}"), ours.kernels_for(library) as host:
                plugged = engines.build(library, model, target)
                found = {name: plugged.count(name.encode()) for name in ("RegionPool", "ContextAttention")}
                answer.row(target=target, precision=dtype, bytes=len(plugged), native=len(native) or "", **found)
                answer.require(all(found.values()), f"{dtype} for {target}: no plugin in the engine ({host.failures})")


CHECKS = (
    Check("context.host_side", "launches, parts and workspace as plugins have them", host_side, KERNELS, 240, rank=6),
    Check(
        "rtx.plugins", "plugin and native engine agree, replay too; both timed", plugins("tensorrt-rtx"),
        (*KERNELS, "onnx", "tensorrt-rtx"), 300, alone=True, rank=6,
    ),
    Check(
        "trt.plugins", "the same with TensorRT", plugins("tensorrt"),
        (*KERNELS, "onnx", "tensorrt"), 400, alone=True, rank=6,
    ),
    Check(
        "rtx.plugins_ahead", "engines with plugins are built for all targets without a GPU", plugins_ahead,
        ("no gpu", "onnx", "tensorrt-rtx"), 300, alone=True, rank=6,
    ),
)  # fmt: skip
