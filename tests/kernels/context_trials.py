"""Trials of the network's two context operations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import kernel_cost as cost
from isnet_trt.cuda import kernel_specs
from isnet_trt.cuda.context_ops import Attention, Pool, attention_pairs, pool_kernels
from isnet_trt.cuda.kernel_specs import LOG2_E
from tests.kernels.trials import BYTES, Deviation, Trial, normal, numbers, relative
from tests.kernels.variants import Output, Variant, set_of

WIDTH, SCALE = 256, 1 / 16


@dataclass(frozen=True)
class AttentionCase:
    """Sizes; ``parts`` None: launched by the runtime's `isnet_trt.cuda.context_ops`, in as many parts as it chooses.

    ``hidden`` keys have a bias of −inf: some and all of the last image's, the first half (whole tiles), or all.
    ``gain`` scales the queries. ``tile``: with ``parts``, the kernel that reads tiles of so many queries through tensor
    maps, ``specialised`` or not, where the variant has it. ``nan``: keys and values of images but the first are NaN.
    """

    label: str
    batch: int
    queries: int
    keys: int
    parts: int | None = None
    width: int = WIDTH
    hidden: Literal["", "some", "first", "all"] = ""
    gain: float = 1.0
    tile: int = 0
    specialised: bool = False
    nan: bool = False


def attention(variant: Variant, case: AttentionCase, dtype: str, seed: int) -> Trial:
    """``attention``, or ``attention_part`` and ``attention_combine``."""
    b, n, m, d = case.batch, case.queries, case.keys, case.width
    q, k, v = (normal(variant, seed + i, (b, size, d), dtype) for i, size in enumerate((n, m, m)))
    q *= case.gain
    if case.nan:
        k[1:], v[1:] = float("nan"), float("nan")
    bias = _bias(variant, case, seed + 3)
    out = Output(variant.device, (b, n, d), dtype)
    kernels, inputs = variant.kernels(set_of("attention", width=d)), {"q": q, "k": k, "v": v, "bias": bias}
    operation = Attention(b, n, m, d, dtype)
    parts = case.parts or operation.parts(kernels, variant.multiprocessors)
    workspace = Output(variant.device, (operation.workspace() // 4,), "fp32")
    norms = Output(variant.device, (parts, b, n), "fp32")
    partial = Output(variant.device, (parts, b, n, d), "fp32") if parts > 1 else out

    def by_runtime() -> None:
        addresses = variant.place({**inputs, "out": out, "workspace": workspace})
        operation.launch(kernels, variant.stream, variant.multiprocessors, SCALE, **addresses)
        variant.collect()

    def directly() -> None:
        every = attention_pairs(dtype, d, trials=True)
        form = f"_{'specialised' if case.specialised else 'map'}{case.tile}_"
        tiles = [pair for pair in every if form in pair[0].name]
        whole, part = next(
            (all_keys.name, part.name) for all_keys, part in [*tiles, *every] if all_keys.name in kernels
        )
        combine = kernel_specs.attention_combine(dtype, d).name
        variant.run(
            set_of("attention", width=d), part if parts > 1 else whole, **inputs, out=partial, norms=norms,
            scale=SCALE * LOG2_E, batch=b, queries=n, keys=m, splits=parts,
        )  # fmt: skip
        if parts > 1:
            variant.run(
                set_of("attention", width=d), combine, parts=partial, norms=norms, out=out, rows=b * n, splits=parts
            )

    def compare(reference: NDArray[np.float64]) -> Iterator[Deviation]:
        result = numbers(out)
        if case.nan:
            yield Deviation("finite values of images with NaN", float(np.isfinite(result[1:]).sum()), 0.0)
            result, reference = result[:1], reference[:1]
        yield from relative("out", result, reference, dtype)

    return Trial(
        directly if case.parts else by_runtime,
        (out,) if parts == 1 and case.parts else (out, norms, partial) if case.parts else (out, workspace),
        lambda: attention_reference(q, k, v, bias, SCALE).numpy(), compare,
        cost.attention(n, m, BYTES[dtype]) * b, parts,
    )  # fmt: skip


def attention_reference(q: Any, k: Any, v: Any, bias: Any, scale: float, chunk: int = 1024) -> torch.Tensor:
    """The formula of `isnet_trt.kernels.attention` in float64 on the tensors' own device, ``chunk`` queries at a time;
    that module's numpy reference would need 4 GB for a real size."""
    out = torch.empty(q.shape, dtype=torch.float64)
    for image in range(len(q)):
        keys, values = k[image].double(), v[image].double()
        for start in range(0, q.shape[1], chunk):
            scores = scale * (q[image, start : start + chunk].double() @ keys.T) + bias[image].double()
            weights = torch.softmax(scores, 1).nan_to_num(0.0)  # no key at all: 0
            out[image, start : start + chunk] = (weights @ values).cpu()
    return out


def _bias(variant: Variant, case: AttentionCase, seed: int) -> torch.Tensor:
    bias = normal(variant, seed, (case.batch, case.keys)) * 2
    if case.hidden == "some":
        bias[:, 1 : case.keys // 3] = -float("inf")
        bias[-1] = -float("inf")
    elif case.hidden:
        bias[:, : case.keys if case.hidden == "all" else case.keys // 2] = -float("inf")
    return bias


@dataclass(frozen=True)
class PoolCase:
    """Sizes; ``parts`` as in `AttentionCase`.

    ``logits`` come in few values, so that many classes tie; far from zero; or one position has a NaN, in one class or
    in all, which must not be hidden.
    ``mixed``: the logits are float32 whatever the features' type.
    """

    label: str
    batch: int
    classes: int
    positions: int
    channels: int = cost.FEATURES
    parts: int | None = None
    logits: Literal["", "ties", "far", "nan", "all nan"] = ""
    mixed: bool = False


def region_pool(variant: Variant, case: PoolCase, dtype: str, seed: int) -> Trial:
    """``pool`` and ``pool_join``."""
    b, k, n, c = case.batch, case.classes, case.positions, case.channels
    types = "fp32" if case.mixed else dtype, dtype
    logits, features = _logits(variant, case, types[0], seed), normal(variant, seed + 1, (b, n, c), dtype)
    kernels, operation = variant.kernels(set_of("pool")), Pool(b, k, n, c, *types)
    tile = kernels.constants(pool_kernels(*types)[0].name)["BLOCK_N"]
    # More classes than positions in a tile: each tile is a part.
    parts = case.parts if case.parts and k <= tile else operation.parts(variant.multiprocessors)
    each = (b, parts, k)
    shapes = {
        "labels": ((b, n), "i32"), "scores": ((b, n), "fp32"), "weights": ((b, n), "fp32"),
        "sums": ((b, parts, min(k, tile), c), "fp32"), "rows": (each, "i32"), "tops": (each, "fp32"),
        "masses": (each, "fp32"), "counts": (each, "i32"), "centres": ((b, k, c), dtype),
        "log_counts": ((b, k), "fp32"), "workspace": ((operation.workspace() // 4,), "fp32"),
    }  # fmt: skip
    outputs = {name: Output(variant.device, *shape) for name, shape in shapes.items()}

    def some(*names: str) -> dict[str, Output]:
        return {name: outputs[name] for name in names}

    def by_runtime() -> None:
        tensors = {"logits": logits, "features": features, **some("centres", "log_counts", "workspace")}
        operation.launch(kernels, variant.stream, variant.multiprocessors, **variant.place(tensors))
        variant.collect()
        # The labels are the first of the workspace.
        first = outputs["workspace"].tensor[: b * n].view(torch.int32)
        outputs["labels"].tensor.copy_(first.view(b, n))

    def directly() -> None:
        pool, join = (spec.name for spec in pool_kernels(*types))
        partial = some("sums", "tops", "masses", "counts", "rows")
        sizes = {"batch": b, "classes": k, "channels": c, "parts": parts}
        positions = some("labels", "scores", "weights")
        variant.run("w256", pool, logits=logits, features=features, **positions, **partial, **sizes, positions=n)
        variant.run("w256", join, **partial, **some("centres", "log_counts"), **sizes)

    def reference() -> tuple[NDArray[Any], ...]:
        from isnet_trt.kernels import region_pool as module

        scores = numbers(logits)
        return (scores.argmax(axis=1), *module.reference(scores, numbers(features)))

    def compare(expected: tuple[NDArray[Any], ...]) -> Iterator[Deviation]:
        centres = numbers(outputs["centres"])
        if "nan" in case.logits:
            yield Deviation("classes without a NaN that must show one", abs(np.isnan(centres).any(2).sum() - 1), 0.0)
            return
        yield Deviation("wrong classes of positions", float((numbers(outputs["labels"]) != expected[0]).sum()), 0.0)
        yield from relative("centres", centres, expected[1], dtype)
        counts, present = numbers(outputs["log_counts"]), np.isfinite(expected[2])
        yield Deviation("absent classes that are not −inf", float((counts[~present] != -np.inf).sum()), 0.0)
        yield Deviation("absent classes whose centre is not 0", float((centres[~present] != 0).sum()), 0.0)
        yield Deviation("log counts", float(np.abs(counts[present] - expected[2][present]).max()), 1e-5)

    names = ("centres", "log_counts", "labels") + (
        ("scores", "weights", "sums", "tops", "masses", "counts", "rows") if case.parts else ("workspace",)
    )
    return Trial(
        directly if case.parts else by_runtime, [outputs[name] for name in names], reference, compare,
        cost.region_pool(k, n, BYTES[dtype]) * b, parts,
    )  # fmt: skip


def _logits(variant: Variant, case: PoolCase, dtype: str, seed: int) -> torch.Tensor:
    logits = normal(variant, seed, (case.batch, case.classes, case.positions), dtype, 4.0 if not case.logits else 1.0)
    if case.logits == "ties":
        logits = logits.round()
    if case.logits == "far":
        return logits + torch.tensor([5000.0, -5000.0, 5000.0], device=variant.device).to(logits)[:, None]
    if case.classes > 3:
        logits[:, 2] = -40  # wins nowhere
    if "nan" in case.logits:
        logits[0, 3 if case.logits == "nan" else slice(None), 5] = float("nan")
    return logits
