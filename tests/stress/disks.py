"""A disk that fills up under predict, build, calibration and training: a clear error, and nothing half left.

    python tests/stress/disks.py --cases 60

Each case gives a command a file system with room for a share of its results that the case's number decides (a tmpfs;
without the right to mount one, a limit on the size of files). A command that cannot write everything ends with one
message and a status above 0, not with a traceback; what is left is whole or absent. With room, the same command then
ends as if nothing had been.
"""

from __future__ import annotations

import random
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jobs
import probe
from kills import Reference, left
from tqdm import tqdm

from isnet_trt.cli import BUG

PLENTY = 64 << 20


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """A tmpfs of ``size`` bytes at ``folder``; False where none can be mounted."""
    folder.mkdir()
    mounted = _succeeds("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def _succeeds(*command: str) -> bool:
    program = shutil.which(command[0])
    return program is not None and not subprocess.run(command, capture_output=True, check=False).returncode


def fill_once(number: int, reference: Reference, folder: Path) -> tuple[str, bool]:
    """What is wrong with a full disk and the next run, and whether the disk was too small."""
    size = int(random.Random(number).uniform(0, 1.1) * reference.bytes) + 1
    with small_disk(folder, size) as mounted:
        longest = size * reference.largest // reference.bytes
        limit = (lambda: None) if mounted else (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (longest, longest)))
        full = jobs.run(reference.job, folder, prepare=limit)
        if reason := _unclear(full) or left(reference, folder):
            return f"with {size} bytes: {reason}", full.status > 0
        if mounted:
            subprocess.run(["mount", "-o", f"remount,size={PLENTY}", str(folder)], check=True)
        ended = jobs.run(reference.job, folder)
        if ended.status:
            return f"the run with room ends with {ended.status}: {ended.output[-300:]}", full.status > 0
        return jobs.differences(jobs.contents(folder, temporary=True), reference.whole), full.status > 0


def _unclear(ended: jobs.Ended) -> str:
    """What is wrong with how a command ended on a full disk."""
    clear = ended.status == 0 or (0 < ended.status < BUG and "Traceback" not in ended.output)
    return "" if clear else f"status {ended.status}: {ended.output[-400:]}"


def main() -> int:
    """Run the cases, the jobs in turn; the exit status."""
    parser = probe.parser(__doc__, 60, "full disks")
    jobs.add_option(parser)
    arguments = parser.parse_args()
    counts, findings = Counter[str](), list[str]()
    with tempfile.TemporaryDirectory() as root:
        chosen = jobs.all_jobs(Path(root) / "inputs", arguments.jobs)
        references = {name: Reference(job, Path(root) / f"{name}-undisturbed") for name, job in chosen.items()}
        turns = jobs.turns(arguments.jobs)
        for number in tqdm(range(arguments.first, arguments.first + arguments.cases), "disks", disable=None):
            reference = references[turns[number % len(turns)]]
            reason, full = fill_once(number, reference, Path(root) / str(number))
            counts[f"{reference.job.name}: {'refused' if full else 'had room'}"] += 1
            if reason:
                findings.append(f"case {number} ({reference.job.name}): {reason}")
                probe.show(findings[-1])
    return probe.finish(arguments, {"cases": arguments.cases, **dict(sorted(counts.items()))}, findings)


if __name__ == "__main__":
    sys.exit(main())
