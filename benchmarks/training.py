"""Iterations of training: crops a second of several variants in interleaved rounds, and the kernels that take the time.

    python -m benchmarks.training --recipe isnet_resnet50os8_ade20k --batch 16 --profile

Each variant is a `Trainer` whose batch is made of random crops, so that reading files plays no part. A round times some
iterations in a row and waits for the GPU at their end.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import command, gpu_stages, results, stats
from isnet_trt import cli, timing
from isnet_trt.recipes import Recipe, recipe
from isnet_trt.training import optimiser
from isnet_trt.training.group import process_group
from isnet_trt.training.options import Options
from isnet_trt.training.trainer import Data, Trainer

if TYPE_CHECKING:
    from isnet_trt.training.group import Group

_KERNELS = 20
"""Kernels in the table of ``--profile``."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """How the iterations are computed; ``fused``: SGD as one kernel."""

    amp: str | None
    fused: bool = True
    compile: bool = False

    @property
    def arithmetic(self) -> str:
        """The type of the matrix products."""
        return self.amp or "fp32"


VARIANTS = {
    "float32": Variant(None),
    "bf16": Variant("bf16"),
    "bf16, SGD not fused": Variant("bf16", fused=False),
    "bf16, compiled": Variant("bf16", compile=True),
    "fp16": Variant("fp16"),
}


class RandomCrops:
    """Images of the crop's size with random pixels and labels."""

    def __init__(self, chosen: Recipe, count: int) -> None:
        self.recipe, self.count = chosen, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rng, size = np.random.default_rng(index), self.recipe.crop
        labels = rng.integers(0, self.recipe.labels.count, size)
        return rng.integers(0, 256, (*size, 3), np.uint8), labels.astype(np.int16)


class Contender:
    """The trainer of a variant, and its batch."""

    def __init__(self, chosen: Recipe, variant: Variant, batch: int, out: Path, group: Group) -> None:
        options = Options(out, 1, batch, workers=0, amp=variant.amp, compile=variant.compile)
        self.variant, self.batch = variant, batch
        crops = RandomCrops(chosen, batch)
        self.trainer = Trainer(chosen, options, Data(crops, crops), group)
        self.trainer.optimiser = optimiser.sgd(self.trainer.model, chosen.optimiser, variant.fused)
        self.x, self.labels = next(iter(self.trainer.loader))

    def iterate(self, count: int) -> None:
        """Compute ``count`` iterations and wait for them; at a rate that leaves random labels harmless."""
        for _ in range(count):
            self.trainer._step(self.x, self.labels, 1e-6, self.labels.numel())
        if self.trainer.group.cuda:
            torch.cuda.synchronize()

    def crops_per_second(self, count: int) -> float:
        """Of ``count`` iterations."""
        return count * self.batch / timing.seconds(functools.partial(self.iterate, count))

    def operations(self) -> int:
        """Floating-point operations of the matrix products and convolutions of one iteration."""
        with FlopCounterMode(display=False) as counter:
            self.iterate(1)
        return counter.get_total_flops()

    def kernels(self) -> str:
        """A table of the slowest kernels of one iteration."""
        kinds = [torch.profiler.ProfilerActivity.CPU]
        kinds += [torch.profiler.ProfilerActivity.CUDA] if self.trainer.group.cuda else []
        with torch.profiler.profile(activities=kinds) as profile:
            self.iterate(1)
        order = "self_device_time_total" if self.trainer.group.cuda else "self_cpu_time_total"
        return profile.key_averages().table(sort_by=order, row_limit=_KERNELS, max_name_column_width=80)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = cli.parser("benchmarks.training", __doc__ or "")
    parser.add_argument("--recipe", default="isnet_demo", help="name or .yaml file (default: isnet_demo)")
    parser.add_argument("--batch", type=cli.positive, help="crops in a batch (default: the recipe's)")
    parser.add_argument("--crop", type=cli.positive, nargs=2, metavar=("H", "W"), help="instead of the recipe's")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="where to compute (default: the GPU if there is one)")
    which = f"which variants (default: all): {'; '.join(VARIANTS)}"
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME", help=which)
    parser.add_argument("--iterations", type=cli.positive, default=10, help="iterations of a round (default: 10)")
    kernels = f"also print the {_KERNELS} slowest kernels of each variant"
    parser.add_argument("--profile", action="store_true", help=kernels)
    command.add_common(parser, rounds=5)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = False, True  # as isnet_trt.training.train
    model = recipe(arguments.recipe)
    model = dataclasses.replace(model, crop=tuple(arguments.crop)) if arguments.crop else model
    gaps: command.Gaps = []
    with process_group(arguments.device) as group, tempfile.TemporaryDirectory() as folder:
        start, batch = time.monotonic(), arguments.batch or model.batch
        chosen = ((name, VARIANTS[name], Path(folder) / name) for name in arguments.variants)
        every = {name: Contender(model, variant, batch, out, group) for name, variant, out in chosen}
        contenders = dict(_prepared(every, gaps))
        runs = [functools.partial(c.crops_per_second, arguments.iterations) for c in contenders.values()]
        samples = timing.interleaved(runs, range(arguments.rounds), "training")
        rates = gpu_stages.measure_rates(quick=True) if group.cuda else {}
        rows = [_row(*item, rates) for item in zip(contenders, contenders.values(), samples, strict=True)]
        for name, contender in contenders.items() if arguments.profile else ():
            print(f"{name}\n{contender.kernels()}")
    title = f"batch {batch}, crops {model.crop[0]}×{model.crop[1]}"
    seconds = round(time.monotonic() - start, 2)
    record = {"kind": "training", "case": f"training.{model.name}", "title": title, "seconds": seconds, "rows": rows}
    return command.finish([record] if rows else [], gaps, arguments.out)


def _prepared(contenders: Mapping[str, Contender], gaps: command.Gaps) -> Iterator[tuple[str, Contender]]:
    """The contenders that can compute an iteration; the others go to ``gaps``."""
    for name, contender in contenders.items():
        try:
            contender.iterate(2)  # chooses algorithms, compiles
        except Exception as error:  # such as a compiler that is missing: the others are still timed
            gaps.append(results.gap(name, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"))
            continue
        yield name, contender


def _row(name: str, contender: Contender, samples: Sequence[float], rates: dict[str, float | str]) -> results.Record:
    spread = stats.spread(samples)
    low, high = spread.quartiles
    row: results.Record = {"variant": name, "crops/s": spread.p50, "quartiles": f"{low:.4g}–{high:.4g}"}
    if contender.variant.compile:  # the counter sees no operation of compiled code
        return row
    operations = contender.operations()
    row["TFLOP an iteration"] = operations / 1e12
    if isinstance(rate := rates.get(f"matrix {contender.variant.arithmetic}"), float):
        row["of the matrix rate %"] = 100 * operations / contender.batch * spread.p50 / rate
    return row


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
