"""``python -m isnet_trt.training.recipes``: the table of recipes, or one recipe in full."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from isnet_trt import cli
from isnet_trt.recipes import RECIPES, Recipe, recipe
from isnet_trt.settings import to_json


def table() -> str:
    """The recipes as a text table, one line each."""
    head = f"{'recipe':36} {'K':>3} {'crop':>9} {'lr':>6} {'batch':>5} {'epochs':>6} {'mIoU':>6} {'ms+flip':>7}"
    lines = [f"{head}  ms+flip inference"]
    for one in RECIPES.values():
        published = [f"{score:.2f}" if score else "-" for score in (one.miou, one.miou_ms_flip)]
        lines.append(
            f"{one.name:36} {one.labels.count:3} {one.crop[0]:4}x{one.crop[1]:<4} {one.optimiser.lr:6g} {one.batch:5} "
            f"{one.epochs:6} {published[0]:>6} {published[1]:>7}  {one.ms_flip.describe()}"
        )
    return "\n".join(lines)


def page(one: Recipe) -> str:
    """Everything about one recipe but its colours, as JSON."""
    data = to_json(one)
    data["labels"] = {"names": ", ".join(one.labels.names), "flip_pairs": one.labels.flip_pairs}
    return json.dumps(data, indent=1, ensure_ascii=False)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = cli.parser(
        "isnet_trt.recipes.published",
        "List the recipes: the twelve published ISNet models and the demo model. Default inference is the whole "
        "picture at scale 1, without flip, for all of them.",
    )
    parser.add_argument("name", nargs="?", help="show this recipe in full; also a .yaml file of one's own data")
    arguments = parser.parse_args(argv)
    print(page(recipe(arguments.name)) if arguments.name else table())
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
