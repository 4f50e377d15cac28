"""``python -m isnet_trt.evaluate``: score a bundle or a checkpoint on a labelled set, or compare two of them."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from isnet_trt import cli
from isnet_trt.datasets.check import spread
from isnet_trt.datasets.layouts import SPLITS, TEST
from isnet_trt.engines.cores import usable_cores
from isnet_trt.engines.table import KINDS
from isnet_trt.errors import DataError, SettingsError, escaped, install_hint, needs
from isnet_trt.evaluation import page
from isnet_trt.evaluation.labelled import SCENES, Labelled, LabelWriter, open_labelled
from isnet_trt.evaluation.models import TORCH, Model, open_model
from isnet_trt.evaluation.picture import draw, grouped
from isnet_trt.evaluation.provenance import Provenance, now
from isnet_trt.evaluation.report import Report
from isnet_trt.evaluation.run import Tally, Watch, run, together
from isnet_trt.files import make_folder, write_file
from isnet_trt.metrics import percent
from isnet_trt.recipes import DATASETS, is_described
from isnet_trt.settings import Placement
from isnet_trt.training.group import Group, process_group
from isnet_trt.training.scenes import HELD_OUT_COUNT

_log = logging.getLogger(__name__)
_TIMEOUT = 24 * 3600.0
"""Seconds that a process waits for the others, whose pictures may be much larger. One that dies ends all at once."""

_DESCRIPTION = """Score a bundle or a checkpoint on a labelled set.

Prints IoU, accuracy, dice and pixels of each class, mIoU, pixel accuracy and images/s, and writes to DIR
  evaluation.json      all figures, settings and confusion counts
  evaluation.html      a page that holds everything: figures, how it was made, the worst pictures, the confusion matrix
  evaluation.md        the same as Markdown, with its images in evaluation/
  confusion.png        the confusion matrix (needs matplotlib); confusion_against.png for a second model
A checkpoint runs in the same runtime (resize, windows, scales, flip, merge) with PyTorch as its engine, so that any
difference from a bundle comes from the network alone."""

_EPILOG = f"""examples:
  no data needed:               python -m isnet_trt.evaluate demo/bundle --dataset {SCENES}
  a bundle on ADE20K:           python -m isnet_trt.evaluate bundles/ade --dataset ade20k --data /data/ADE20k
  the published multi-scale:    … --preset ms-flip
  is the engine as accurate as the checkpoint?
                                … --against isnet_resnet50os8_ade20k.pth
  a bundle's engine beside its own graph on the CPU:
                                … --against bundles/ade --against-engine onnxruntime
  four processes:               torchrun --nproc-per-node 4 -m isnet_trt.evaluate bundles/ade …
  labels for a server:          … --dataset cityscapes --data DIR --split test --export submission

The model's classes must be those of the dataset, by number and name. Every picture counts once, whatever the number
of processes. Exit status: 0 all pictures scored, 1 some were skipped (--skip-unreadable), 2 not done."""


def argument_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = cli.parser("isnet_trt.evaluate", _DESCRIPTION, _EPILOG)
    parser.add_argument("model", metavar="MODEL", help="a bundle's folder, or a checkpoint (.pth)")
    parser.add_argument("--against", metavar="OTHER", help="a second model, on the same pictures side by side")
    add = parser.add_argument_group("pictures").add_argument
    names = f"{', '.join(DATASETS)}, the path of a .yaml file, or {SCENES} (drawn; no --data)"
    add("--dataset", required=True, metavar="NAME", help=names)
    add("--data", type=Path, metavar="DIR", help="the dataset's folder (default: its name, here)")
    split = "which part of it (default: val); test has no labels and needs --export"
    add("--split", default="val", choices=(*SPLITS, TEST), help=split)
    limit = f"N pictures, evenly spaced (default: all; {HELD_OUT_COUNT} scenes)"
    add("--limit", type=cli.positive, metavar="N", help=limit)
    add("--skip-unreadable", action="store_true", help="leave out pictures that fail, and list them")
    add = parser.add_argument_group("how the network is run").add_argument
    add("--preset", default="default", help="default or ms-flip, as the model defines them")
    add("--engine", choices=(*KINDS, TORCH), help="of a bundle, instead of its own")
    add("--against-engine", choices=(*KINDS, TORCH), help="the same for OTHER")
    add("--recipe", metavar="NAME", help="of a checkpoint (default: the .yaml dataset's, or found)")
    cli.add_weights(add)
    device = "cpu, cuda or cuda:N (default: a bundle runs where its engine was built for, a checkpoint on a GPU if any)"
    add("--device", type=cli.device, default="auto", metavar="DEVICE", help=device)
    add("--threads", type=cli.threads, metavar="N", help="CPU threads (default: all cores)")
    add = parser.add_argument_group("results").add_argument
    out = "folder (default: evaluation); not used with --split test, which has no figures"
    add("--out", type=Path, default=Path("evaluation"), metavar="DIR", help=out)
    add("--export", type=Path, metavar="DIR", help="write MODEL's labels there, in the dataset's ids")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = argument_parser().parse_args(argv)
    cli.check_needed(arguments, against_engine="against")
    _refuse_for_bundles(arguments)
    if arguments.split == TEST and not arguments.export:
        raise SettingsError("--split test: its labels are not public, so there is nothing to score; add --export DIR")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and Placement.parse(arguments.device).number is not None:
        raise SettingsError(f"--device {arguments.device}: torchrun gives each process a GPU of its own; use cuda")
    with _shared() as group, ExitStack() as opened:
        pictures = open_labelled(arguments.dataset, arguments.data, arguments.split, arguments.limit)
        if arguments.split != TEST:
            make_folder(arguments.out, "--out")
        keep = LabelWriter(arguments.export, pictures) if arguments.export else None
        models = _open_models(arguments, pictures, opened)
        chosen = spread(len(pictures), arguments.limit or len(pictures))
        part = chosen[group.rank :: group.size]
        with _progress(len(part), group) as watch:
            tally = run(models, pictures, part, skip=arguments.skip_unreadable, keep=keep, watch=watch)
        report = _report(pictures, models, together(tally, group), group)
        names = "".join(f"{pictures.names[index]}\n" for index in chosen)
        report = dataclasses.replace(
            report, digest=hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
        )
        if not report.tally.pictures:
            raise DataError(
                f"none of the {len(chosen)} pictures could be used; the first: {report.tally.skipped[0][1]}"
            )
        if arguments.split != TEST and not report.metrics[0].occurring:
            raise DataError(
                f"none of the {report.tally.pictures} pictures scored has a labelled pixel, so there is nothing to "
                f"score: look through the labels with python -m isnet_trt.training.data check {arguments.dataset}"
            )
        if group.rank == 0:
            command = cli.invocation("isnet_trt.evaluate", argv)
            _present(report, arguments, Provenance(command, report.created_at))
    # torchrun stops the other processes once one fails: only the one that writes the page says so, after it.
    return cli.FAILED if report.tally.skipped and group.rank == 0 else 0


def _refuse_for_bundles(arguments: argparse.Namespace) -> None:
    """Raise SettingsError if an option of checkpoints is given and no model is one."""
    if all(Path(path).is_dir() for path in (arguments.model, arguments.against) if path):
        for option, value in (("--recipe", arguments.recipe), ("--weights", arguments.weights)):
            if value not in (None, "plain"):
                raise SettingsError(f"{option} {value} is for checkpoints, and no model is one: leave it out")


@contextmanager
def _shared() -> Iterator[Group]:
    """The processes that `torchrun` started, from the environment that it sets; without it this process alone.

    Counts are sent by gloo. A process sees one GPU, chosen by its number on the machine. CUDA must not be in use yet.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        _choose_gpu()
        with needs("a run of several processes", "train"):
            import torch.distributed  # noqa: F401
    with process_group("cpu", timeout=_TIMEOUT) as group:
        yield group


def _choose_gpu() -> None:
    """Make one GPU visible, chosen by this process's number on the machine; processes share GPUs if there are fewer."""
    local, visible = int(os.environ.get("LOCAL_RANK", 0)), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(local)
    elif visible.strip():
        gpus = visible.split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[local % len(gpus)]


def _threads_each() -> int | None:
    """CPU threads for each process of a run of several on this machine; None (the engine's default) for one."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, usable_cores() // processes) if processes > 1 else None


def _open_models(arguments: argparse.Namespace, pictures: Labelled, opened: ExitStack) -> list[Model]:
    """Open the model and, if there is one, the other; ``opened`` closes both."""
    paths = [(arguments.model, arguments.engine)]
    if arguments.against:
        paths.append((arguments.against, arguments.against_engine))
    threads = arguments.threads or _threads_each()
    # A checkpoint trained on one's own pictures fits no published recipe; their YAML file is its recipe.
    recipe = arguments.recipe or (arguments.dataset if is_described(arguments.dataset) else None)
    models = []
    for path, engine in paths:
        options = {"preset": arguments.preset, "recipe": recipe, "device": arguments.device, "threads": threads}
        options["weights"] = arguments.weights
        model = open_model(path, pictures, engine=engine, **options)
        opened.callback(model.segmenter.close)
        models.append(model)
    return models


@contextmanager
def _progress(count: int, group: Group) -> Iterator[Watch]:
    """A bar with the running mIoU of this process's pictures, in the first process only and only on a terminal."""
    from tqdm import tqdm

    with tqdm(total=count, unit="picture", disable=None if group.rank == 0 else True, dynamic_ncols=True) as bar:

        def watch(tally: Tally) -> None:
            if not bar.disable:
                figures = (percent(score.confusion.metrics().miou) for score in tally.scores)
                bar.set_postfix_str(f"mIoU {' / '.join(figures)} %", refresh=False)
            bar.update(tally.pictures + len(tally.skipped) - bar.n)

        yield watch


def _report(pictures: Labelled, models: Sequence[Model], tally: Tally, group: Group) -> Report:
    """The report on ``tally``, the counts of all processes."""
    descriptions = group.gather([model.segmenter.engine.description for model in models])
    engines = tuple(" and ".join(dict.fromkeys(lines)) for lines in zip(*descriptions, strict=True))
    return Report(pictures.name, pictures.split, pictures.labels, tuple(models), engines, tally, group.size, now())


def _present(report: Report, arguments: argparse.Namespace, provenance: Provenance) -> None:
    """Print the report and write its files."""
    for _, reason in report.tally.skipped:
        cli.echo(f"skipped: {escaped(reason)}", file=sys.stderr)
    if arguments.split == TEST:
        cli.echo("\n".join(page.facts(report)))
    else:
        cli.echo(page.text(report))
        _write(report, arguments.out, provenance)
    if arguments.export:
        cli.echo(f"labels in the dataset's ids: {arguments.export}")


def _write(report: Report, out: Path, provenance: Provenance) -> None:
    data = json.dumps(report.to_json() | {"command": provenance.command}, indent=1, ensure_ascii=False, allow_nan=False)
    files = {"evaluation.json": (data + "\n").encode(), **page.documents(report, provenance, _matrices(report))}
    if any(name.startswith(page.FOLDER + "/") for name in files):
        make_folder(out / page.FOLDER, "--out")
    for name, content in files.items():
        write_file(out / name, content)
    if "evaluation.html" not in files:
        _log.warning("no HTML page: markdown-it-py is not installed; %s", install_hint("train"))
    names = [name for name in files if "/" not in name]
    more = f", and {len(files) - len(names)} images in {page.FOLDER}/" if len(files) > len(names) else ""
    cli.echo(f"\nwritten to {out}: {', '.join(names)}{more}")


def _matrices(report: Report) -> list[page.Matrix]:
    """The confusion matrix of each model; none without matplotlib."""
    matrices, names = [], report.labels.names
    try:
        for model, score, figures in zip(report.models, report.tally.scores, report.metrics, strict=True):
            title = f"{Path(model.path).name} on {report.dataset} {report.split}, mIoU {figures.describe_miou()}"
            some, some_names = grouped(score.confusion, names)
            small = draw(some, some_names, title) if some is not score.confusion else None
            matrices.append(page.Matrix(draw(score.confusion, names, title), small))
    except ImportError as error:
        _log.warning("no confusion picture: %s; %s", error, install_hint("train"))
    return matrices
