"""Trials of the network's two context operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import kernel_cost as cost
from benchmarks.gpu_check.forms import Form
from benchmarks.gpu_check.place import device
from benchmarks.gpu_check.trial import SIZES, Deviation, Output, compared, normal, numbers
from isnet_trt.cuda import kernel_specs
from isnet_trt.cuda.launch_grid import splits

WIDTH, SCALE = 256, 1 / 16
_CHUNK = 1024


def multiprocessors(form: Form) -> int:
    """Of the GPU; 1 where kernels are interpreted."""
    import torch

    return torch.cuda.get_device_properties(0).multi_processor_count if form.device == device() else 1


def attention_oracle(q: Any, k: Any, v: Any, bias: Any, scale: float) -> Any:
    """The formula of `isnet_trt.kernels.attention` in float64, on the tensors' own device, a thousand queries at a
    time; a test holds it to that module's numpy reference."""
    import torch

    out = torch.empty(q.shape, dtype=torch.float64)
    for image in range(len(q)):
        keys, values = k[image].double(), v[image].double()
        for start in range(0, q.shape[1], _CHUNK):
            scores = scale * (q[image, start : start + _CHUNK].double() @ keys.T) + bias[image].double()
            weights = torch.softmax(scores, 1).nan_to_num(0.0)  # no key at all: 0
            out[image, start : start + _CHUNK] = (weights @ values).cpu()
    return out


@dataclass(frozen=True)
class AttentionCase:
    """Sizes; ``parts`` None: as many as keep the multiprocessors busy."""

    label: str
    batch: int
    queries: int
    keys: int
    parts: int | None = None
    width: int = WIDTH
    hidden: bool = False
    """Some keys are left out, and the last image has none."""


class AttentionTrial:
    """``attention``, or ``attention_part`` and ``attention_combine``."""

    def __init__(self, form: Form, case: AttentionCase, dtype: str, seed: int) -> None:
        self._form, self._case, self._dtype = form, case, dtype
        b, n, m, d = case.batch, case.queries, case.keys, case.width
        self._model = "150" if d == WIDTH else f"w{d}"
        self.q, self.k, self.v = (normal(form, seed + i, (b, size, d), dtype) for i, size in enumerate((n, m, m)))
        self.bias = _bias(form, case, seed + 3)
        self.tile = kernel_specs.attention_tile(dtype, form.arch)
        self.parts = case.parts or self._parts()
        self._out = Output(form.device, (b, n, d), dtype)
        self._norms = Output(form.device, (self.parts, b, n), "fp32")
        self._partial = Output(form.device, (self.parts, b, n, d), "fp32") if self.parts > 1 else self._out
        self.outputs: Sequence[Output] = (self._out,) if self.parts == 1 else (self._out, self._norms, self._partial)
        self.cost = cost.attention(n, m, SIZES[dtype]) * b
        self._launches = (
            kernel_specs.attention(dtype, d, self.parts > 1, form.arch),
            kernel_specs.attention_combine(dtype, d),
        )

    def _parts(self) -> int:
        tiles = self._case.batch * -(-self._case.queries // self.tile.queries)
        return splits(tiles, -(-self._case.keys // self.tile.keys), multiprocessors(self._form))

    def launch(self) -> None:
        """See `trial.Trial.launch`."""
        from isnet_trt.kernels.attention import LOG2_E

        b, n, m = self._case.batch, self._case.queries, self._case.keys
        self._form.run(
            self._launches[0], self._model, q=self.q, k=self.k, v=self.v, bias=self.bias, out=self._partial.tensor,
            norms=self._norms.tensor, scale=SCALE * LOG2_E, batch=b, queries=n, keys=m, splits=self.parts,
        )  # fmt: skip
        if self.parts > 1:
            self._form.run(
                self._launches[1], self._model, parts=self._partial.tensor, norms=self._norms.tensor,
                out=self._out.tensor, rows=b * n, splits=self.parts,
            )  # fmt: skip

    def reference(self) -> NDArray[np.float64]:
        """See `trial.Trial.reference`."""
        return np.asarray(attention_oracle(self.q, self.k, self.v, self.bias, SCALE).numpy())

    def deviations(self, wanted: NDArray[np.float64]) -> Iterator[Deviation]:
        """See `trial.Trial.deviations`."""
        yield from compared("out", self._out.values(), wanted, self._dtype)


def _bias(form: Form, case: AttentionCase, seed: int) -> Any:
    bias = normal(form, seed, (case.batch, case.keys)) * 2
    if case.hidden:
        bias[:, 1 : case.keys // 3] = -float("inf")
        bias[-1] = -float("inf")
    return bias


@dataclass(frozen=True)
class PoolCase:
    """Sizes; ``ties``: logits come in few values, so that many classes are equal."""

    label: str
    batch: int
    classes: int
    positions: int
    channels: int = cost.FEATURES
    parts: int | None = None
    ties: bool = False


class PoolTrial:
    """``assign``, ``pool`` and ``pool_combine``."""

    def __init__(self, form: Form, case: PoolCase, dtype: str, seed: int) -> None:
        self._form, self._case, self._dtype = form, case, dtype
        b, k, n, c = case.batch, case.classes, case.positions, case.channels
        gain = 1.0 if case.ties else 4.0
        self.logits = normal(form, seed, (b, k, n), dtype, gain)
        if case.ties:
            self.logits = self.logits.round()
        self.logits[:, 2] = -40  # wins nowhere
        self.features = normal(form, seed + 1, (b, n, c), dtype)
        self.parts = case.parts or self._parts()
        shapes = {
            "labels": ((b, n), "i32"), "scores": ((b, n), "fp32"), "sums": ((self.parts, b, k, c), "fp32"),
            "tops": ((self.parts, b, k), "fp32"), "masses": ((self.parts, b, k), "fp32"),
            "counts": ((self.parts, b, k), "i32"), "centres": ((b, k, c), dtype), "log_counts": ((b, k), "fp32"),
        }  # fmt: skip
        self._held = {name: Output(form.device, *shape) for name, shape in shapes.items()}
        self.outputs: Sequence[Output] = tuple(self._held.values())
        self.cost = cost.region_pool(k, n, SIZES[dtype]) * b
        self._launches = (
            kernel_specs.assign(dtype),
            kernel_specs.pool(dtype),
            kernel_specs.pool_combine(dtype),
        )

    def _parts(self) -> int:
        tile = kernel_specs.pool(self._dtype).constants
        tiles = (
            self._case.batch * -(-self._case.classes // tile["BLOCK_K"]) * -(-self._case.channels // tile["BLOCK_C"])
        )
        return splits(tiles, -(-self._case.positions // tile["BLOCK_N"]), 2 * multiprocessors(self._form))

    def launch(self) -> None:
        """See `trial.Trial.launch`."""
        held = {name: output.tensor for name, output in self._held.items()}
        b, k, n, c = self._case.batch, self._case.classes, self._case.positions, self._case.channels
        sizes = {"batch": b, "classes": k, "positions": n}
        found = {name: held[name] for name in ("labels", "scores")}
        parts = {name: held[name] for name in ("sums", "tops", "masses", "counts")}
        ends = {name: held[name] for name in ("centres", "log_counts")}
        assign, pool, combine = self._launches
        self._form.run(assign, "150", logits=self.logits, **found, **sizes)
        self._form.run(pool, "150", features=self.features, **found, **parts, **sizes, channels=c, splits=self.parts)
        self._form.run(combine, "150", **parts, **ends, batch=b, classes=k, channels=c, splits=self.parts)

    def reference(self) -> tuple[NDArray[Any], ...]:
        """See `trial.Trial.reference`: classes of positions, centres and log counts."""
        from isnet_trt.kernels import region_pool

        logits = numbers(self.logits)
        return (logits.argmax(axis=1), *region_pool.reference(logits, numbers(self.features)))

    def deviations(self, wanted: tuple[NDArray[Any], ...]) -> Iterator[Deviation]:
        """See `trial.Trial.deviations`."""
        classes, centres, log_counts = wanted
        labels = self._held["labels"].values()
        yield Deviation("wrong classes of positions", float((labels != classes).sum()), 0.0)
        yield from compared("centres", self._held["centres"].values(), centres, self._dtype)
        made, finite = self._held["log_counts"].values(), np.isfinite(log_counts)
        yield Deviation("absent classes that are not −inf", float((made[~finite] != -np.inf).sum()), 0.0)
        yield Deviation("log counts", float(np.abs(made[finite] - log_counts[finite]).max()), 1e-5)
