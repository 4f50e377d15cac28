"""kill -9 at random instants of predict, build, calibration and training; the next run must end as if nothing was.

    python tests/stress/kills.py --cases 200

Each case kills one command at an instant that its number decides, as a share of the seconds of an undisturbed run.
What is left then is whole or absent. The same command again ends with status 0 and the results of the undisturbed run,
to the byte (but times of day), and no temporary file is left. Training goes on by --resume.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import jobs
import probe
from tqdm import tqdm

from isnet_trt.errors import IsnetError


class Reference:
    """A job, the results of an undisturbed run, its seconds and its bytes: all, and of the largest file."""

    def __init__(self, job: jobs.Job, folder: Path) -> None:
        self.job = job
        ended = jobs.run(job, folder)
        assert ended.status == 0, ended.output
        self.whole, self.seconds = jobs.contents(folder, temporary=True), ended.seconds
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        self.bytes, self.largest = sum(sizes), max(sizes)


def kill_once(number: int, reference: Reference, folder: Path) -> tuple[str, bool]:
    """What is wrong after a kill and the next run, and whether the command was still running."""
    instant = random.Random(number).random() * reference.seconds
    killed = jobs.run(reference.job, folder, kill_after=instant)
    if reason := left(reference, folder):
        return f"killed after {instant:.3f} s: {reason}", killed.status < 0
    ended = jobs.run(reference.job, folder)
    if ended.status:
        return f"the run after the kill ends with {ended.status}: {ended.output[-300:]}", killed.status < 0
    return jobs.differences(jobs.contents(folder, temporary=True), reference.whole), killed.status < 0


def left(reference: Reference, folder: Path) -> str:
    """What is wrong with what a killed command left."""
    try:
        return reference.job.left(folder, reference.whole)
    except IsnetError as error:
        return f"half a result: {error}"


def main() -> int:
    """Run the cases, the jobs in turn; the exit status."""
    parser = probe.parser(__doc__, 200, "kills")
    jobs.add_option(parser)
    arguments = parser.parse_args()
    counts, findings = Counter[str](), list[str]()
    with tempfile.TemporaryDirectory() as root:
        chosen = jobs.all_jobs(Path(root) / "inputs", arguments.jobs)
        references = {name: Reference(job, Path(root) / f"{name}-undisturbed") for name, job in chosen.items()}
        turns = jobs.turns(arguments.jobs)
        numbers = range(arguments.first, arguments.first + arguments.cases)
        for number in tqdm(numbers, "kills", disable=None):
            reference, folder = references[turns[number % len(turns)]], Path(root) / str(number)
            reason, running = kill_once(number, reference, folder)
            counts[f"{reference.job.name}: killed" if running else f"{reference.job.name}: had ended"] += 1
            if reason:
                findings.append(f"case {number} ({reference.job.name}): {reason}")
                probe.show(findings[-1])
                shutil.copytree(folder, arguments.keep / f"kills-{number}", symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(folder)
    figures: dict[str, Any] = {"cases": arguments.cases, **dict(sorted(counts.items()))}
    return probe.finish(arguments, figures, findings)


if __name__ == "__main__":
    sys.exit(main())
