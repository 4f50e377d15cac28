"""Segment image files on a Ray cluster: segment.py BUNDLE OUT IMAGES… [--actors N] [--gpus G] [--preset PRESET]

IMAGES are files or folders on this machine, or s3://, gs:// or hdfs:// addresses. A mask STEM_labels.png is written
into OUT for each image. Images whose mask is there already are left out, so that a run that was stopped can be started
again. Without a cluster (RAY_ADDRESS) one is started on this machine. It prints each image without a mask, and why.
Exit status: 0 all have a mask, 1 some have none.
"""

from __future__ import annotations

import argparse
import sys

import ray

from isnet_trt.integrations.ray import Actors, segment


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("out")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--actors", type=int, default=1, help="processes that segment (default: 1)")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each, such as 0.5 (default: 0)")
    parser.add_argument("--preset", default="default")
    arguments = parser.parse_args()
    ray.init(include_dashboard=False)
    actors = Actors(count=arguments.actors, num_gpus=arguments.gpus)
    report = segment(arguments.images, arguments.bundle, out=arguments.out, preset=arguments.preset, actors=actors)
    written = found = failed = 0
    for row in report.iter_rows():
        if row["error"]:
            failed += 1
            print(f"error: {row['path']}: {row['error']}", file=sys.stderr)
        elif row["found"]:
            found += 1
        else:
            written += 1
    print(f"{written} masks written, {found} were there, {failed} images have none")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
