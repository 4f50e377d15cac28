"""What it costs to look inside: profiler ranges and call statistics, for each operation and as a share of a call.

A call of the demo's size takes some hundred milliseconds; what its ranges and statistics cost is measured alone, since
the difference of two calls is lost in their noise. Ranges are timed without the package nvtx and, where it is
installed, with it but without a profiler.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from benchmarks import command, results, stats
from isnet_trt import cli, timing
from isnet_trt.telemetry import ranges
from isnet_trt.telemetry.stats import About, Recorder

REPEATS = 20_000
"""Operations of a sample."""
STATS = "stats()"
STAGES = {"read": 1e-3, "resize": 4e-3, "gather": 2e-3, "engine": 0.4, "merge": 0.03}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = cli.parser("benchmarks.telemetry", __doc__ or "")
    command.add_common(parser, rounds=15)
    arguments = parser.parse_args(argv)
    operations = _operations()
    runs = [
        functools.partial(_nanoseconds, call, REPEATS if name != STATS else REPEATS // 50)
        for name, call in operations.items()
    ]
    samples = timing.interleaved(runs, range(arguments.rounds), "telemetry")
    records: list[results.Record] = []
    for name, nanoseconds in zip(operations, samples, strict=True):
        figures = stats.spread(nanoseconds)
        # The kind has no section of its own: it is shown as a check.
        records.append(
            {
                "kind": "telemetry",
                "case": f"telemetry.{name}",
                "figures": {"ns": figures.p50, "quartiles": figures.quartiles},
            }
        )
    return command.finish(records, [], arguments.out)


def _operations() -> dict[str, Callable[[], Any]]:
    """Operation by name; the first is the loop alone."""
    recorder, error, about = Recorder(), ValueError(), About("onnxruntime", "CPU")
    operations: dict[str, Callable[[], Any]] = {
        "loop alone": lambda: None,
        "range without nvtx": _range(None),
        "call recorded": lambda: recorder.succeeded(0.44, STAGES),
        "failure recorded": lambda: recorder.failed(error),
        STATS: lambda: recorder.stats(about, {}),
    }
    if importlib.util.find_spec("nvtx"):
        ranges.look_for_nvtx()
        operations["range with nvtx, no profiler"] = _range(ranges._domain)
    return operations


def _range(domain: Any) -> Callable[[], None]:
    def operation() -> None:
        ranges.pop(ranges.push("engine"))

    operation.context = functools.partial(_domain, domain)  # type: ignore[attr-defined]
    return operation


@contextmanager
def _domain(domain: Any) -> Iterator[None]:
    before, ranges._domain = ranges._domain, domain
    try:
        yield
    finally:
        ranges._domain = before


def _nanoseconds(operation: Callable[[], Any], repeats: int) -> float:
    """Mean processor time of an operation, which other processes hardly change, the loop around it included."""

    with getattr(operation, "context", nullcontext)():
        start = time.thread_time_ns()
        for _ in range(repeats):
            operation()
        return (time.thread_time_ns() - start) / repeats


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
