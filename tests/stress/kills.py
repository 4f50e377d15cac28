"""kill -9 at random instants of predict, build, calibration and training; the next run must end as if nothing was.

    python tests/stress/kills.py --cases 200

Each case kills one command at an instant that its number decides, as a share of the seconds of an undisturbed run.
What is left then is whole or absent. The same command again ends with status 0 and the results of the undisturbed run,
to the byte (but times of day), and no temporary file is left. Training goes on by --resume.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import jobs

from isnet_trt.errors import IsnetError


def kill_once(number: int, reference: jobs.Reference, folder: Path) -> tuple[str, bool]:
    """What is wrong after a kill and the next run, and whether the command was still running."""
    instant = random.Random(number).random() * reference.seconds
    killed = jobs.run(reference.job, folder, kill_after=instant)
    if reason := left(reference, folder):
        return f"killed after {instant:.3f} s: {reason}", killed.status < 0
    ended = jobs.run(reference.job, folder)
    if ended.status:
        return f"the run after the kill ends with {ended.status}: {ended.output[-300:]}", killed.status < 0
    return jobs.differences(jobs.contents(folder, temporary=True), reference.whole), killed.status < 0


def left(reference: jobs.Reference, folder: Path) -> str:
    """What is wrong with what a killed command left."""
    try:
        return reference.job.left(folder, reference.whole)
    except IsnetError as error:
        return f"half a result: {error}"


def kill_case(number: int, reference: jobs.Reference, folder: Path) -> tuple[str, str]:
    """The finding of a case, if any, and how it is counted."""
    reason, running = kill_once(number, reference, folder)
    return reason, "killed" if running else "had ended"


if __name__ == "__main__":
    sys.exit(jobs.run_cases(__doc__, 200, "kills", kill_case))
