"""How fast kernels and stages are on this GPU, beside the least that its own rates allow.

The cases are those of tests/kernels/cases.py, at the sizes of the published models; whether the kernels are right is
shown by ``make test-gpu``. Records have the layout of that suite (kind ``gpu_check``) and may go into the same file.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import results
from benchmarks.kernel_cost import Card
from isnet_trt import cli
from isnet_trt.cuda.gpu import probe_gpu
from isnet_trt.errors import EngineUnavailable, SettingsError

if TYPE_CHECKING:  # torch and Triton are imported where they are used: --help does without
    from benchmarks.gpu_stages import Bench, Row

Measurement = Callable[["Bench"], Iterator["Row"]]
_DESCRIPTION = """Time kernels and stages on this machine's GPU, beside the floors that its own rates give.

speed.FAMILY is a kernel at the sizes of the published models; attention.rate is attention beside PyTorch's; stages.CASE
are all stages of an image but the network, on the GPU's clock; whole.CASE compares them with PyTorch's float16 network
in a CUDA graph, peers.CASE this with PyTorch eager and torch.compile; bundle.NAME is a bundle's engine, all other
stages and whole calls. Bundles beside other peers, end to end: python -m benchmarks.latency."""
_EPILOG = """examples:
  python -m benchmarks.kernels                                      # everything
  python -m benchmarks.kernels --only speed.attention --quick
  python -m benchmarks.kernels --only bundle --bundle bundles/city
  python -m benchmarks.kernels --out benchmarks/results/nvidia-h100-80gb-hbm3.json   # beside its other records

exit status: 0 all was measured, 1 an aim was missed or something could not be measured"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = cli.parser("benchmarks.kernels", _DESCRIPTION, _EPILOG)
    only = "only measurements whose names hold a WORD"
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help=only)
    parser.add_argument("--quick", action="store_true", help="fewer types and rounds")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON; records of the same name in it are replaced")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep compiled kernels in DIR")
    parser.add_argument("--seed", type=cli.seed, default=0, help="of all random inputs (default: 0)")
    parser.add_argument("--bundle", nargs="+", type=Path, default=[], metavar="DIR", help="bundles to time as well")
    arguments = parser.parse_args(argv)
    every = measurements(arguments.bundle)
    chosen = {name: call for name, call in every.items() if any(part in name for part in arguments.only or [""])}
    if not chosen:
        raise SettingsError(f"--only {' '.join(arguments.only)}: no name holds it; there are {', '.join(every)}")
    gpu, reason = probe_gpu()
    if gpu is None:
        raise EngineUnavailable(f"kernels are timed on an NVIDIA GPU: {reason}")
    from benchmarks import gpu_stages
    from tests.gpu.target import Target

    start = time.monotonic()
    rates = gpu_stages.measure_rates(arguments.quick)
    numbers = {name: value for name, value in rates.items() if isinstance(value, float)}
    records = [record("rates", "matrix and copy rates of this card", time.monotonic() - start, figures=numbers)]
    write(arguments.out, records)
    card = Card(gpu.name, numbers["copy"], numbers["matrix fp16"], numbers["matrix fp32"])
    with tempfile.TemporaryDirectory() as temporary:
        target = Target((arguments.work or Path(temporary)).resolve(), arguments.quick, arguments.seed)
        bench = gpu_stages.Bench(target, arguments.quick, card, numbers)
        for name, call in chosen.items():
            records.append(measure(name, call, bench))
            write(arguments.out, records)  # each as it comes: a run cut short keeps what it has
    return cli.FAILED if any(row["status"] != "passed" for row in records) else 0


def measure(name: str, call: Measurement, bench: Bench) -> Row:
    """The record of one measurement; one that fails says why."""
    bench.missed, start = [], time.monotonic()
    try:
        rows = list(call(bench))
        function, options = (call.func, call.keywords) if isinstance(call, partial) else (call, {})
        title = (function.__doc__ or name).partition("\n")[0].replace("NAME", str(options.get("name")))
        row = record(name, title, time.monotonic() - start, rows, "; ".join(bench.missed))
    except Exception as error:  # such as kernels that do not compile: the others are still timed
        row = record(name, name, 0.0, why=f"{type(error).__name__}: {error}")
    print(f"\n{name}  {row['why']}")
    for cells in row["rows"]:
        print("  " + "  ".join(f"{key} {f'{v:.4g}' if isinstance(v, float) else v}" for key, v in cells.items()))
    return row


def record(case: str, title: str, seconds: float, rows: Sequence[Row] = (), why: str = "", figures: Any = None) -> Row:
    """A record of the GPU suite's layout; ``why`` it failed, or nothing."""
    return {
        "kind": "gpu_check", "case": case, "title": title.rstrip("."), "status": "failed" if why else "passed",
        "why": " ".join(why.split()), "seconds": round(seconds, 2), "figures": figures or {}, "rows": list(rows),
        "missing": [],
    }  # fmt: skip


def write(out: Path | None, records: Sequence[Row]) -> None:
    """Put ``records`` into a result file, in the place of those of the same cases."""
    if out is None:
        return
    cases = {row["case"] for row in records}
    before = results.read(out) if out.is_file() else {"records": [], "gaps": []}
    others = [row for row in before["records"] if row["case"] not in cases]
    results.write(out, results.result([*others, *records], before["gaps"]))


def measurements(bundles: Sequence[Path] = ()) -> dict[str, Measurement]:
    """Name -> what is measured, as rows."""
    from benchmarks import gpu_stages
    from tests.kernels.cases import FAMILIES

    calls: dict[str, Measurement] = {f"speed.{name}": partial(gpu_stages.speed, name=name) for name in FAMILIES}
    calls["attention.rate"] = gpu_stages.attention_rate
    for kind, work in {"stages": gpu_stages.stage_times, "whole": gpu_stages.whole, "peers": gpu_stages.peers}.items():
        calls |= {f"{kind}.{name}": partial(work, name=name) for name in gpu_stages.MODELS}
    return calls | {f"bundle.{folder.name}": partial(gpu_stages.bundle, folder=folder) for folder in bundles}


if __name__ == "__main__":
    sys.exit(cli.run(main))
