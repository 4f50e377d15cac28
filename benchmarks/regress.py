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
from isnet_trt.metrics import percent

_DESCRIPTION = """Compare two result files and say what changed beyond the noise.

A time counts as changed when the intervals of the two medians do not meet and the medians differ by at least --least.
On the same processor and as many cores that is asked of seconds; where both results timed the plain reference form in
the same rounds, also of the share of its time, and then one of the two must show apart and both must have moved: a
machine that was slower as a whole is no regression. On another machine only the share counts. A change of seconds alone
between runs of which one was on a busy machine is called noisy, not worse. One or two rounds tell nothing of the noise:
where either result has so few, a time counts as changed from 10 % on. Accuracy counts as lost from --points percentage
points of mIoU or of label agreement, memory from --counts. A bundle that was timed in BASE and failed or was refused in
NEW is worse; what NEW did not measure at all is a gap."""
_EPILOG = """examples:
  python -m benchmarks.regress benchmarks/results/cpu.json new.json
  python -m benchmarks.regress base.json new.json --least 0.05

Exit status: 0 nothing got worse, 1 something did, 2 the results cannot be compared."""
CONTROL = "reference"


@dataclass(frozen=True)
class Limits:
    """From where on a change counts: relative for times and memory, percentage points for accuracy."""

    least: float = 0.03
    points: float = 0.1
    counts: float = 0.02


@dataclass(frozen=True)
class Change:
    """One figure in both results; ``verdict`` is worse, better, same, noisy or gap."""

    name: str
    base: str
    new: str
    verdict: str


@dataclass(frozen=True)
class Figure:
    """A figure with the interval it may lie in.

    ``portable``: it means the same on another machine; ``noisy``: its rounds say that the machine was busy; ``few``:
    there are too few rounds to say so.
    """

    value: float
    low: float
    high: float
    text: str
    portable: bool = True
    noisy: bool = False
    few: bool = False


Measures = tuple[Figure, ...]
"""One thing measured in one or two ways."""
Figures = Iterator[tuple[str, Measures]]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = cli.parser("benchmarks.regress", _DESCRIPTION, _EPILOG)
    parser.add_argument("base", type=Path, metavar="BASE", help="the earlier result")
    parser.add_argument("new", type=Path, metavar="NEW", help="the later one")
    bound = cli.number(0, 1e6)
    parser.add_argument("--least", type=bound, default=Limits.least, help="relative change of a time (default: 0.03)")
    parser.add_argument("--points", type=bound, default=Limits.points, help="points of accuracy (default: 0.1)")
    parser.add_argument("--counts", type=bound, default=Limits.counts, help="relative change of memory (default: 0.02)")
    arguments = parser.parse_args(argv)
    limits = Limits(arguments.least, arguments.points, arguments.counts)
    changes = compare(results.read(arguments.base), results.read(arguments.new), limits)
    if not any(change.verdict != "gap" for change in changes):
        raise SettingsError(f"{arguments.base} and {arguments.new} have no figure in common")
    for change in changes:
        print(f"{change.verdict:7}{change.name}: {change.base} -> {change.new}")
    verdicts = [change.verdict for change in changes]
    counts = (f"{verdicts.count(verdict)} {verdict}" for verdict in ("worse", "better", "noisy", "gap"))
    print(", ".join(counts) + f", of {len(changes)}")
    return cli.FAILED if "worse" in verdicts else 0


def compare(base: Result, new: Result, limits: Limits = Limits()) -> list[Change]:
    """Every figure that both have, and a gap for each that only ``base`` has."""
    same_machine = all(base["machine"].get(about) == new["machine"].get(about) for about in ("processor", "cores"))
    changes: list[Change] = []
    for kind, figures in _KINDS.items():
        after = dict(figures(new))
        for name, measures in figures(base):
            pairs = [(b, n) for b, n in zip(measures, after.get(name, ()), strict=False) if same_machine or b.portable]
            text = ", ".join(figure.text for figure in after.get(name, ())) or "not in the new result"
            verdict = _verdict(kind, pairs, limits) if pairs else "gap"
            if name in after and not pairs:
                text = "measured on another machine"
            changes.append(Change(name, ", ".join(figure.text for figure in measures), text, verdict))
    return changes


def _verdict(kind: str, pairs: Sequence[tuple[Figure, Figure]], limits: Limits) -> str:
    if kind == "accuracy":
        lost = pairs[0][0].value - pairs[0][1].value
        return "worse" if lost >= limits.points else "better" if -lost >= limits.points else "same"
    least = limits.least if kind == "times" else limits.counts
    # So few rounds say nothing of their noise: the bound for a busy machine is taken instead.
    if any(b.few or n.few for b, n in pairs):
        least = max(least, stats.NOISY)
    # One measure apart, all moved: on a slower machine seconds move, but not their share of the control's.
    rose = any(n.low > b.high for b, n in pairs) and all(n.value >= b.value * (1 + least) for b, n in pairs)
    fell = any(n.high < b.low for b, n in pairs) and all(n.value <= b.value * (1 - least) for b, n in pairs)
    # A share is never noisy, so that only a change of seconds alone is put down to a busy machine.
    if (rose or fell) and all(b.noisy or n.noisy for b, n in pairs):
        return "noisy"
    return "worse" if rose else "better" if fell else "same"


def _bundles(data: Result) -> Iterator[tuple[str, Record, Record]]:
    """(name of the figures, latency record, contender) of every bundle, timed or not."""
    for record in of_kind(data, "latency"):
        for contender in record["contenders"]:
            if contender["kind"] == "bundle":
                yield f"{record['case']}, {contender['name']}", record, contender


def _times(data: Result) -> Figures:
    for name, record, bundle in _bundles(data):
        control = next((c.get("seconds") for c in record["contenders"] if c["name"] == CONTROL), None)
        if bundle["status"] == "timed":
            yield f"{name}, seconds", _time(bundle["seconds"], control)
    for record in of_kind(data, "postprocess"):
        seconds = record["seconds"]
        yield f"{record['case']}, scores to labels, seconds", _time(seconds["isnet_trt"], seconds[CONTROL])


def _time(seconds: Sequence[float], control: Sequence[float] | None) -> Measures:
    """Seconds, and their share of the control's in the same rounds."""
    own, few = stats.spread(seconds), len(seconds) < stats.FEW
    noisy = not few and bool(stats.noise(seconds))
    absolute = Figure(own.p50, own.low, own.high, f"{own.p50:.4f} s", portable=False, noisy=noisy, few=few)
    if not control:
        return (absolute,)
    share = stats.ratios(seconds, control)
    return absolute, Figure(share.p50, share.low, share.high, f"{share.p50:.3f} of the reference's", few=few)


def _accuracies(data: Result) -> Figures:
    for record in of_kind(data, "accuracy"):
        for row in record["rows"]:
            shares = {"mIoU": row["miou"], **{f"labels equal ({k})": v for k, v in row["agreement"].items()}}
            for metric, share in shares.items():
                if share is not None:
                    yield f"{record['case']}, {row['name']}, {metric}", _share(share)
    for record in of_kind(data, "postprocess"):
        yield f"{record['case']}, scores to labels, labels equal", _share(record["labels_equal"])
    for name, _, bundle in _bundles(data):
        timed = bundle["status"] == "timed"
        yield f"{name}, answered", _exact(100.0 if timed else 0.0, "yes" if timed else bundle["why"])
        if bundle["agreement"]:
            yield f"{name}, labels equal", _share(bundle["agreement"]["all"])


def _share(share: float) -> Measures:
    return _exact(100 * share, f"{percent(share)} %")


def _exact(value: float, text: str, margin: float = 0.0) -> Measures:
    return (Figure(value, value - margin, value + margin, text),)


def _memories(data: Result) -> Figures:
    for record in of_kind(data, "postprocess"):
        if (size := record["memory"]["isnet_trt"]) is not None:
            # Allocators round to pages and arenas: a few MiB are no change.
            yield f"{record['case']}, scores to labels, memory", _exact(size, f"{size / 2**20:.1f} MiB", 4 * 2**20)
    for name, _, bundle in _bundles(data):
        if bundle["status"] == "timed" and (size := bundle["memory"]["beyond"]) is not None:
            yield f"{name}, memory beyond weights", _exact(size, f"{size / 2**20:.0f} MiB", 0.1 * size)


_KINDS = {"times": _times, "accuracy": _accuracies, "memory": _memories}


if __name__ == "__main__":
    sys.exit(cli.run(main))
