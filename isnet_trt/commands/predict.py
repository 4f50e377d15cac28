"""``python -m isnet_trt.predict``: label maps and overlays of picture files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath

from isnet_trt import cli
from isnet_trt.engines.library import PLACEMENTS
from isnet_trt.engines.table import KINDS
from isnet_trt.errors import ImageError, IsnetError, SettingsError, escaped, first_few
from isnet_trt.files import check_target, make_folder, named, output_folder, refuse_inputs
from isnet_trt.pictures.files import Image, write_png
from isnet_trt.pictures.finding import ImageSource, Search, find_images
from isnet_trt.pictures.results import LABELS, OVERLAY
from isnet_trt.runtime.segmentation import Segmentation
from isnet_trt.runtime.segmenter import Segmenter
from isnet_trt.settings import Inference, choose_preset

_DESCRIPTION = """Segment pictures with a bundle.

For each picture DIR receives
  <stem>_labels.png    class ids, 8-bit grey (16-bit above 256 classes), at the picture's size
  <stem>_overlay.png   the picture blended with the class colours, and a legend of the classes in it
Of two inputs with the same stem, the later one's files are called <folder>_<stem>_…, with a number where that name is
taken too; a line says so. Files of an earlier run are replaced, and are not taken for pictures to be segmented."""

_EPILOG = """examples:
  one picture:                  python -m isnet_trt.predict bundles/ade photo.jpg --out results
  a folder and a pattern:       python -m isnet_trt.predict bundles/ade photos/ 'more/*.png' --out results
  with subfolders:              python -m isnet_trt.predict bundles/ade photos/ --recursive --out results
  from a server:                python -m isnet_trt.predict bundles/ade https://example.org/photo.jpg --out results
  the published multi-scale:    python -m isnet_trt.predict bundles/ade photos/ --out results --preset ms-flip
  the same without mirroring:   … --preset ms-flip --no-flip
  windows of your own:          … --mode slide --window 512 1024 --stride 341 341 --scales 0.75 1 1.25

The preset comes from the bundle; each option given replaces one field of it. Pictures of more than 2^28 pixels are
refused; the environment variable ISNET_TRT_MAX_PIXELS sets another limit. Exit status: 0 all done, 1 some picture
could not be segmented (the others are), 2 none could be, or the arguments are wrong."""


def argument_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = cli.parser("isnet_trt.predict", _DESCRIPTION, _EPILOG)
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", help="folder made by python -m isnet_trt.build")
    add("images", metavar="IMAGE", nargs="+", help="picture file, folder, glob, or http(s) URL")
    add("--recursive", "-r", action="store_true", help="subfolders of folders too; results go to the same in DIR")
    add("--out", required=True, metavar="DIR", type=Path, help="folder for the results; made if missing")
    add("--engine", choices=KINDS, help="instead of the bundle's own, e.g. onnxruntime for the CPU")
    device = "cuda: ONNX Runtime on the GPU (onnxruntime-gpu); auto: where the engine was built for"
    add("--device", choices=PLACEMENTS, default="auto", help=device)
    add("--threads", type=cli.threads, metavar="N", help="CPU threads (default: all cores)")
    add_inference(parser)
    return parser


def add_inference(parser: argparse.ArgumentParser) -> None:
    """The options that `choose_inference` reads."""
    add = parser.add_argument_group("how a picture is shown to the network").add_argument
    add("--preset", default="default", help="default or ms-flip, as the bundle defines them")
    add("--mode", choices=("whole", "slide"), help="the whole picture at once, or windows")
    add("--window", nargs=2, type=cli.side, metavar=("H", "W"), help="window in pixels (slide)")
    add("--stride", nargs=2, type=cli.side, metavar=("H", "W"), help="step between windows (slide)")
    add("--scales", nargs="+", type=float, metavar="S", help="factors of the picture's size")
    add("--flip", action=argparse.BooleanOptionalAction, help="show it mirrored as well")
    average = "average probabilities, or with --no- logits"
    add("--softmax-before-resize", action=argparse.BooleanOptionalAction, help=average)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = argument_parser().parse_args(argv)
    search = Search()
    pictures = find_images(arguments.images, recursive=arguments.recursive, search=search)
    if not pictures:
        raise ImageError(first_few(search.unreadable))
    options = {"engine": arguments.engine, "threads": arguments.threads, "device": arguments.device}
    with output_folder(arguments.out, "--out") as out:
        jobs = plan_outputs(pictures, out)
        _print_notes(search, jobs)
        with Segmenter.open(arguments.bundle, **options) as segmenter:
            inference = choose_inference(segmenter.presets, arguments)
            print(f"{segmenter.description}; {inference.describe()}", file=sys.stderr)
            failed = _segment_all(segmenter, inference, jobs)
    done = len(jobs) - len(failed)
    results = f", results in {out}" if done else ""
    print(f"{done} of {len(jobs)} pictures segmented{results}", file=sys.stderr)
    for failure in (*search.unreadable, *failed):
        print(f"failed: {escaped(failure)}", file=sys.stderr)  # file names may hold control characters
    if not done:
        return cli.ERROR
    return cli.FAILED if search.unreadable or failed else 0


def _print_notes(search: Search, jobs: dict[ImageSource, Path]) -> None:
    """Tell on stderr which files are left out, and whose results have another name than their own."""
    if search.results:
        names = first_few([path.name for path in search.results])
        print(f"{len(search.results)} results of earlier runs left out: {names}", file=sys.stderr)
    renamed = [f"{source.location} → {stem.name}_…" for source, stem in jobs.items() if stem.name != source.stem]
    if renamed:
        print(f"results under another name, for names that were taken: {first_few(renamed)}", file=sys.stderr)


def choose_inference(presets: dict[str, Inference], arguments: argparse.Namespace) -> Inference:
    """The preset with the fields that options give replaced; SettingsError if they do not make sense together."""
    preset = choose_preset(presets, arguments.preset)
    names = ("mode", "window", "stride", "scales", "flip", "softmax_before_resize")
    options = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    mode = fields.get("mode", preset.mode)
    if mode == "whole" and fields.keys() & {"window", "stride"}:
        raise SettingsError("--window and --stride belong to --mode slide; add it or leave them out")
    if mode == "slide":
        fields = _fallback_window(presets, preset, fields) | fields
    return preset.replace(**fields)


def _fallback_window(presets: dict[str, Inference], preset: Inference, fields: dict) -> dict:
    """Window and stride where neither the options nor the preset have them: those of the bundle's ms-flip preset."""
    published = presets.get("ms-flip", preset)
    window = fields.get("window") or preset.window or published.window
    stride = fields.get("stride") or preset.stride or published.stride
    if window is None or stride is None:
        missing = " and ".join(f"--{n} H W" for n, v in (("window", window), ("stride", stride)) if v is None)
        raise SettingsError(
            f"--mode slide needs {missing}: no preset of this bundle has windows. The training crop with a stride of "
            "two thirds of it is usual, such as --window 512 512 --stride 341 341"
        )
    return {"window": window, "stride": stride}


def plan_outputs(pictures: Sequence[ImageSource], out: Path) -> dict[ImageSource, Path]:
    """Picture -> results' path without ``_labels.png``, in ``out``.

    Raises SettingsError if a result would replace one of the pictures.
    """
    jobs = {picture: out / stem for picture, stem in zip(pictures, output_stems(pictures), strict=True)}
    files = (picture.location for picture in pictures if isinstance(picture.location, Path))
    refuse_inputs((path for stem in jobs.values() for path in outputs(stem)), files, "--out")
    return jobs


def output_stems(pictures: Sequence[ImageSource]) -> list[PurePath]:
    """The stem of each picture's results in its subfolder, no two alike (also where a file system ignores case).

    The first keeps its own; a later one of the same stem gets its folder's name in front, then a number behind.
    """
    taken: set[str] = set()
    stems = []
    for picture in pictures:
        named = f"{picture.folder_name}_{picture.stem}"
        choices = (picture.stem, named, *(f"{named}_{i}" for i in range(2, len(pictures) + 2)))
        paths = (picture.subfolder / choice for choice in choices)
        stem = next(path for path in paths if str(path).lower() not in taken)
        taken.add(str(stem).lower())
        stems.append(stem)
    return stems


def outputs(stem: Path) -> tuple[Path, Path]:
    """The label and overlay files of ``stem``."""
    return stem.with_name(f"{stem.name}{LABELS}"), stem.with_name(f"{stem.name}{OVERLAY}")


def _segment_all(segmenter: Segmenter, inference: Inference, jobs: dict[ImageSource, Path]) -> list[str]:
    """Segment and write every picture; return one line for each that failed."""
    from tqdm import tqdm

    failures = []
    for picture, stem in tqdm(jobs.items(), unit="picture", disable=None, leave=False):
        try:
            _check_targets(stem)
            image = picture.read()
            save(segmenter(image, inference=inference), image, stem)
        except MemoryError as error:
            failures.append(f"{picture.location}: there is too little memory for it ({error}); make it smaller")
        except (IsnetError, OSError) as error:
            failures.append(named(picture.location, error))
    return failures


def _check_targets(stem: Path) -> None:
    """Raise ImageError if the system takes a result's name for no file, before time is spent on the picture."""
    for path in outputs(stem):
        try:
            check_target(path)
        except OSError as error:
            raise ImageError(f"{path} cannot be written: {error.strerror}") from None


def save(segmentation: Segmentation, image: Image, stem: Path) -> None:
    """Write ``<stem>_labels.png`` and ``<stem>_overlay.png``, each whole or not at all; ImageError if that fails."""
    if not stem.parent.is_dir():  # a subfolder of --out
        make_folder(stem.parent, "--out")
    labels, overlay = outputs(stem)
    write_png(labels, segmentation.labels, result=True)
    write_png(overlay, segmentation.overlay(image)[:, :, ::-1], result=True)
