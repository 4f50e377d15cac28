"""``python -m isnet_trt.training.recipes``: the table of recipes, or one recipe in full."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict

from isnet_trt import cli
from isnet_trt.recipes import RECIPES, NetworkRecipe, Recipe, any_recipe


def table() -> str:
    """The recipes as a text table, one line each."""
    head = f"{'recipe':36} {'K':>3} {'crop':>9} {'lr':>6} {'batch':>5} {'epochs':>6} {'mIoU':>6} {'ms+flip':>7}"
    lines = [f"{head}  ms+flip inference"]
    for each in RECIPES.values():
        miou, miou_ms_flip = (f"{score:.2f}" if score else "-" for score in (each.miou, each.miou_ms_flip))
        lines.append(
            f"{each.name:36} {each.labels.count:3} {each.crop[0]:4}x{each.crop[1]:<4} {each.optimiser.lr:6g} "
            f"{each.batch:5} {each.epochs:6} {miou:>6} {miou_ms_flip:>7}  {each.ms_flip.describe()}"
        )
    return "\n".join(lines)


def page(shown: Recipe | NetworkRecipe) -> str:
    """A recipe without its colours, as JSON; lists of numbers are on one line."""
    data = asdict(shown)
    data["labels"] = {"names": ", ".join(shown.labels.names), "flip_pairs": shown.labels.flip_pairs}
    text = json.dumps(data, indent=1, ensure_ascii=False)
    return re.sub(r"\[\n([\s\d.,-]+)\]", lambda numbers: f"[{' '.join(numbers[1].split())}]", text)


def argument_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = cli.parser(
        "isnet_trt.training.recipes",
        "List the recipes: the twelve published ISNet models and the demo model. The default inference of all is the "
        "whole picture at scale 1, without flip.",
    )
    parser.add_argument(
        "name", nargs="?", help="show this recipe in full; also a .yaml file of your own data, or of any network"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = argument_parser().parse_args(argv)
    print(page(any_recipe(arguments.name)) if arguments.name else table())
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
