"""What got slower or less accurate from one result to the next, beyond the noise."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import results, stats
from benchmarks.results import Record, Result, of_kind
from isnet_trt import cli
from isnet_trt.errors import SettingsError

_DESCRIPTION = """Compare two result files and say what changed beyond the noise.

A time counts as changed when the intervals of the two medians do not meet and the medians differ by at least --least.
On the same processor and as many cores that is asked of seconds; where both results timed the plain reference form in
the same rounds, also of the share of its time, and then one of the two must show apart and both must have moved: a
machine that was slower as a whole is no regression. On another machine only the share counts. A change of seconds alone
between runs of which one was on a busy machine is called noisy, not worse. One or two rounds tell nothing of the noise:
there a time counts as changed from 10 % on. Accuracy counts as lost from --points percentage points of mIoU or of label
agreement, memory and instruction counts from --counts. A bundle that was timed in BASE and failed or was refused in NEW
is worse; what NEW did not measure at all is a gap."""
_EPILOG = """examples:
  python -m benchmarks.regress benchmarks/results/cpu.json new.json
  python -m benchmarks.regress base.json new.json --least 0.05

Exit status: 0 nothing got worse, 1 something did, 2 the results cannot be compared."""
CONTROL = "reference"
FEW = 3
"""Below so many rounds nothing is known of the noise."""


@dataclass(frozen=True)
class Limits:
    """From where on a change counts: relative for times and counts, percentage points for accuracy."""

    least: float = 0.03
    points: float = 0.1
    counts: float = 0.02


@dataclass(frozen=True)
class Change:
    """One figure in both results; ``verdict`` is worse, better, same, noisy or gap."""

    what: str
    base: str
    new: str
    verdict: str


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = cli.parser("benchmarks.regress", _DESCRIPTION, _EPILOG)
    parser.add_argument("base", type=Path, metavar="BASE", help="the earlier result")
    parser.add_argument("new", type=Path, metavar="NEW", help="the later one")
    parser.add_argument("--least", type=float, default=Limits.least, help="relative change of a time (default: 0.03)")
    parser.add_argument("--points", type=float, default=Limits.points, help="points of accuracy (default: 0.1)")
    parser.add_argument("--counts", type=float, default=Limits.counts, help="relative change of counts (default: 0.02)")
    arguments = parser.parse_args(argv)
    limits = Limits(arguments.least, arguments.points, arguments.counts)
    changes = compare(results.read(arguments.base), results.read(arguments.new), limits)
    if not any(change.verdict != "gap" for change in changes):
        raise SettingsError(f"{arguments.base} and {arguments.new} have no figure in common")
    for change in changes:
        print(f"{change.verdict:7}{change.what}: {change.base} -> {change.new}")
    counts = {verdict: sum(change.verdict == verdict for change in changes) for verdict in _VERDICTS}
    print(", ".join(f"{n} {verdict}" for verdict, n in counts.items()) + f", of {len(changes)}")
    return cli.FAILED if counts["worse"] else 0


def compare(base: Result, new: Result, limits: Limits = Limits()) -> list[Change]:
    """Every figure that both have, and a gap for each that only ``base`` has."""
    same_machine = all(base["machine"].get(about) == new["machine"].get(about) for about in ("processor", "cores"))
    changes: list[Change] = []
    for kind, figures in _KINDS.items():
        old, fresh = (dict(figures(data)) for data in (base, new))
        for what, before in old.items():
            after = fresh.get(what)
            changes.append(_change(kind, what, before, after, same_machine, limits))
    return changes


@dataclass(frozen=True)
class Figure:
    """A figure with the interval it may lie in; ``portable``: it means the same on another machine."""

    value: float
    low: float
    high: float
    text: str
    portable: bool = False
    noisy: bool = False
    """Its rounds say that the machine was busy."""
    few: bool = False
    """There are too few rounds to say so."""


Measures = tuple[Figure, ...]
"""One thing measured in one or two ways."""


def _change(kind: str, what: str, base: Measures, new: Measures | None, same_machine: bool, limits: Limits) -> Change:
    text = ", ".join(figure.text for figure in base)
    if new is None:
        return Change(what, text, "not in the new result", "gap")
    pairs = [(b, n) for b, n in zip(base, new, strict=False) if same_machine or b.portable]
    if not pairs:
        return Change(what, text, "measured on another machine", "gap")
    return Change(what, text, ", ".join(figure.text for figure in new), _verdict(kind, pairs, limits))


def _verdict(kind: str, pairs: Sequence[tuple[Figure, Figure]], limits: Limits) -> str:
    if kind == "accuracy":
        lost = pairs[0][0].value - pairs[0][1].value
        return "worse" if lost >= limits.points else "better" if -lost >= limits.points else "same"
    least = limits.least if kind == "times" else limits.counts
    if any(b.few or n.few for b, n in pairs):
        least = max(least, stats.NOISY)
    rose = any(n.low > b.high for b, n in pairs) and all(n.value >= b.value * (1 + least) for b, n in pairs)
    fell = any(n.high < b.low for b, n in pairs) and all(n.value <= b.value * (1 - least) for b, n in pairs)
    if (rose or fell) and all(b.noisy or n.noisy for b, n in pairs):
        return "noisy"
    return "worse" if rose else "better" if fell else "same"


Figures = Iterator[tuple[str, Measures]]


def _times(data: Result) -> Figures:
    for record in of_kind(data, "latency"):
        timed = {c["name"]: c for c in record["contenders"] if c["status"] == "timed"}
        control = timed.get(CONTROL)
        for one in timed.values():
            if one["kind"] == "bundle":
                yield f"{record['case']}, {one['name']}, seconds", _time(one["seconds"], control and control["seconds"])
    for record in of_kind(data, "postprocess"):
        yield (
            f"{record['case']}, scores to labels, seconds",
            _time(*(record["seconds"][k] for k in ("isnet_trt", CONTROL))),
        )


def _time(seconds: Sequence[float], control: Sequence[float] | None) -> Measures:
    """Seconds, and their share of the control's in the same rounds."""
    own, few = stats.spread(seconds), len(seconds) < FEW
    noisy = not few and bool(stats.noise(seconds))
    found = Figure(own.p50, own.low, own.high, f"{own.p50:.4f} s", noisy=noisy, few=few)
    if not control:
        return (found,)
    share = stats.ratios(seconds, control)
    text = f"{share.p50:.3f} of the reference's"
    return found, Figure(share.p50, share.low, share.high, text, portable=True, few=few)


def _accuracies(data: Result) -> Figures:
    for record in of_kind(data, "accuracy"):
        for row in record["rows"]:
            figures = {"mIoU": row["miou"], **{f"labels equal ({k})": v for k, v in row["agreement"].items()}}
            for what, share in figures.items():
                if share is not None:
                    yield f"{record['case']}, {row['name']}, {what}", _exact(100 * share, f"{100 * share:.2f} %")
    for record in of_kind(data, "postprocess"):
        share = 100 * record["labels_equal"]
        yield f"{record['case']}, scores to labels, labels equal", _exact(share, f"{share:.2f} %")
    for record in of_kind(data, "latency"):
        for one in record["contenders"]:
            if one["kind"] == "bundle":
                yield from _answers(record["case"], one)


def _answers(case: str, one: Record) -> Figures:
    """Whether a bundle answered as it must, as 100 or 0, and the share of labels that are the reference's."""
    timed = one["status"] == "timed"
    yield f"{case}, {one['name']}, answered", _exact(100.0 if timed else 0.0, "yes" if timed else one["why"])
    if one["agreement"]:
        share = 100 * one["agreement"]["all"]
        yield f"{case}, {one['name']}, labels equal", _exact(share, f"{share:.2f} %")


def _counts(data: Result) -> Figures:
    for record in of_kind(data, "instructions"):
        for stage, count in record["stages"].items():
            yield f"{stage}, instructions", _exact(count, f"{count:,}")
    for record in of_kind(data, "postprocess"):
        held = record["memory"]["isnet_trt"]
        if held is not None:
            # Allocators round to pages and arenas: a few MiB are no change.
            yield f"{record['case']}, scores to labels, memory", _spread(held, 4 * 2**20, f"{held / 2**20:.1f} MiB")
    for record in of_kind(data, "latency"):
        yield from _memories(record)


def _memories(record: Record) -> Figures:
    for one in record["contenders"]:
        if one["status"] == "timed" and one["kind"] == "bundle" and one["memory"]["beyond"] is not None:
            held = one["memory"]["beyond"]
            figure = _spread(held, 0.1 * held, f"{held / 2**20:.0f} MiB")
            yield f"{record['case']}, {one['name']}, memory beyond weights", figure


def _exact(value: float, text: str) -> Measures:
    return (Figure(value, value, value, text, portable=True),)


def _spread(value: float, about: float, text: str) -> Measures:
    return (Figure(value, value - about, value + about, text, portable=True),)


_VERDICTS = ("worse", "better", "noisy", "gap")
_KINDS = {"times": _times, "accuracy": _accuracies, "counts": _counts}


if __name__ == "__main__":
    sys.exit(cli.run(main))
