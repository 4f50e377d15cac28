"""``python -m isnet_trt.predict``: segment picture files, and save label maps in the forms that other tools read."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from isnet_trt import cli
from isnet_trt.bundle import MANIFEST
from isnet_trt.bundle.files import sha256
from isnet_trt.commands import predict_video
from isnet_trt.commands.inference_options import add_inference, choose_inference
from isnet_trt.commands.json_lines import JsonLines, check_lines_file, open_lines
from isnet_trt.engines.table import KINDS
from isnet_trt.errors import ImageError, IsnetError, SettingsError, escaped, first_few, is_out_of_memory
from isnet_trt.files import check_target, make_folder, named, output_folder, printable, refuse_inputs
from isnet_trt.pictures.finding import ImageSource, Search, find_images
from isnet_trt.pictures.forms import DEFAULT, FORMS, OVERLAY_SUFFIXES, check_packages, parse_forms
from isnet_trt.pictures.geotiff import read_georeference
from isnet_trt.pictures.label_maps import check_palette
from isnet_trt.pictures.video import is_video
from isnet_trt.runtime.call import StageTimer
from isnet_trt.runtime.segmenter import Segmenter
from isnet_trt.settings import Inference

_FILES = "".join(f"  {f'<stem>_{name}{form.suffix}':<26} {form.content}\n" for name, form in FORMS.items())
_DESCRIPTION = f"""Segment pictures with a bundle.

For each picture DIR receives those of these files that --save names:
{_FILES}
Of two inputs with the same stem, the later one's files are called <folder>_<stem>_…, with a number where that name is
taken too; a line says so. Files of an earlier run are replaced, and are not taken for pictures to be segmented."""

_EPILOG = """examples:
  one picture:                  python -m isnet_trt.predict bundles/ade photo.jpg --out results
  a folder and a pattern:       python -m isnet_trt.predict bundles/ade photos/ 'more/*.png' --out results
  with subfolders:              python -m isnet_trt.predict bundles/ade photos/ --recursive --out results
  from a server:                python -m isnet_trt.predict bundles/ade https://example.org/photo.jpg --out results
  the published multi-scale:    python -m isnet_trt.predict bundles/ade photos/ --out results --preset ms-flip
  the same without mirroring:   … --preset ms-flip --no-flip
  masks for other tools:        … --save palette,rle,polygons,geotiff
  overlays for a slide:         … --save overlay --alpha 0.7 --overlay-format webp --side-by-side
  a video, a stream, a camera:  python -m isnet_trt.predict bundles/ade in.mp4 --out out.mp4 --show-every 2
  a line for each picture:      … --json - > results.jsonl
  windows of your own:          … --mode slide --window 512 1024 --stride 341 341 --scales 0.75 1 1.25

The preset comes from the bundle; each option given replaces one field of it. Pictures of more than 2^28 pixels are
refused; the environment variable ISNET_TRT_MAX_PIXELS sets another limit. Exit status: 0 all done, 1 some picture
could not be segmented (the others are), 2 none could be, or the arguments are wrong."""


def argument_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = cli.parser("isnet_trt.predict", _DESCRIPTION, _EPILOG)
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", help="folder made by python -m isnet_trt.build")
    add("images", metavar="IMAGE", nargs="+", help="picture file, folder, glob, http(s) URL, or a video")
    add("--recursive", "-r", action="store_true", help="subfolders of folders too; results go to the same in DIR")
    add(
        "--out",
        required=True,
        metavar="DIR",
        type=Path,
        help="folder for the results, made if missing; a file for a video",
    )
    forms = f"comma-separated list of {', '.join(FORMS)} (default: {','.join(DEFAULT)})"
    add("--save", type=_forms, action="extend", metavar="FORMS", help=forms)
    add("--no-overlay", dest="overlay", action="store_false", help="save no overlay")
    add(
        "--alpha",
        type=cli.number(0, 1),
        metavar="A",
        help="opacity of the class colours in overlays, 0 to 1 (default: 0.5)",
    )
    kind = "file format of overlays: png, or the smaller jpeg or webp (default: png)"
    add("--overlay-format", choices=OVERLAY_SUFFIXES, help=kind)
    add(
        "--side-by-side",
        action="store_const",
        const=True,
        help="put the unchanged picture to the left of its overlay, in videos as well",
    )
    half = "of the probabilities that are saved (default: float32)"
    add("--probability-type", choices=("float32", "float16"), help=half)
    lines = "write a JSON line for each picture to FILE, or with - to the standard output"
    add("--json", nargs="?", const="-", metavar="FILE", help=lines)
    add("--engine", choices=KINDS, help="instead of the bundle's own, e.g. onnxruntime for the CPU")
    device = "auto: where the engine was built for, or on a GPU by onnxruntime-gpu; cpu; cuda; cuda:N"
    add("--device", type=cli.device, default="auto", metavar="DEVICE", help=device)
    add("--threads", type=cli.threads, metavar="N", help="CPU threads (default: all cores)")
    add_inference(parser)
    predict_video.add_video(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = argument_parser().parse_args(argv)
    if any(map(is_video, arguments.images)):
        return predict_video.run(arguments)
    predict_video.refuse_for_pictures(arguments)
    forms = _chosen_forms(arguments)
    search = Search()
    pictures = find_images(arguments.images, recursive=arguments.recursive, search=search)
    if not pictures:
        raise ImageError(first_few(search.unreadable))
    options = {"engine": arguments.engine, "threads": arguments.threads, "device": arguments.device}
    with output_folder(arguments.out, "--out") as out:
        suffix = OVERLAY_SUFFIXES[arguments.overlay_format or "png"]
        jobs = plan_outputs(pictures, out, forms, suffix)
        files = (path for stem in jobs.values() for path in outputs(stem, forms, suffix).values())
        check_lines_file(arguments.json, files)
        _print_notes(search, jobs)
        with Segmenter.open(arguments.bundle, **options) as segmenter:
            inference = choose_inference(segmenter.presets, arguments)
            cli.note(f"{segmenter.description}; {inference.describe()}")
            if "palette" in forms:
                check_palette(segmenter.labels.count)
            with open_lines(arguments.json) as stream:
                lines = JsonLines(stream, sha256(Path(arguments.bundle) / MANIFEST))
                style = predict_video.overlay_style(arguments)
                settings = Settings(forms, arguments.probability_type or "float32", inference, style, suffix)
                for reason in search.unreadable:
                    lines.failed(None, ImageError, reason)
                failed = _segment_all(segmenter, settings, jobs, lines)
    done = len(jobs) - len(failed)
    results = f", results in {out}" if done else ""
    cli.note(f"{done} of {len(jobs)} pictures segmented{results}")
    for failure in (*search.unreadable, *failed):
        cli.note(f"failed: {escaped(failure)}")  # one line for each
    if not done:
        return cli.ERROR
    return cli.FAILED if search.unreadable or failed else 0


def _print_notes(search: Search, jobs: dict[ImageSource, Path]) -> None:
    """Tell on stderr which files are left out, and whose results have another name than their own."""
    if search.results:
        names = first_few([path.name for path in search.results])
        cli.note(f"{len(search.results)} results of earlier runs left out: {names}")
    renamed = [f"{source.location} → {stem.name}_…" for source, stem in jobs.items() if stem.name != source.stem]
    if renamed:
        cli.note(f"results under another name, for names that were taken: {first_few(renamed)}")


def _forms(text: str) -> tuple[str, ...]:
    try:
        return parse_forms(text)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


_OF_FORM = {"overlay": ("alpha", "overlay_format", "side_by_side"), "probabilities": ("probability_type",)}
"""Form -> the options that say how it is saved."""


def _chosen_forms(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The forms to save.

    Raises:
        SettingsError: no form is left, or an option is given of a form that is not saved.
        PackageMissing: the package of a form is not installed.
    """
    forms = tuple(dict.fromkeys(arguments.save or DEFAULT))
    if not arguments.overlay:
        forms = tuple(form for form in forms if form != "overlay")
    if not forms:
        raise SettingsError("--no-overlay leaves nothing to save; add a form to --save")
    for form, names in _OF_FORM.items():
        for name in names:
            if form not in forms and getattr(arguments, name) is not None:
                option, plural = f"--{name.replace('_', '-')}", form if form.endswith("s") else f"{form}s"
                raise SettingsError(
                    f"{option} belongs to {plural}, and none is saved: leave it out, or add {form} to --save"
                )
    check_packages(forms)
    return forms


def plan_outputs(
    pictures: Sequence[ImageSource], out: Path, forms: Iterable[str] = DEFAULT, overlay_suffix: str = ".png"
) -> dict[ImageSource, Path]:
    """Picture -> results' path without ``_labels.png``, in ``out``.

    Raises SettingsError if a result would replace one of the pictures.
    """
    jobs = {picture: out / stem for picture, stem in zip(pictures, output_stems(pictures), strict=True)}
    files = (picture.location for picture in pictures if isinstance(picture.location, Path))
    written = (path for stem in jobs.values() for path in outputs(stem, forms, overlay_suffix).values())
    refuse_inputs(written, files, "--out")
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


def outputs(stem: Path, forms: Iterable[str] = DEFAULT, overlay_suffix: str = ".png") -> dict[str, Path]:
    """Form -> file of ``stem``."""
    suffixes = {form: overlay_suffix if form == "overlay" else FORMS[form].suffix for form in forms}
    return {form: stem.with_name(f"{stem.name}_{form}{suffix}") for form, suffix in suffixes.items()}


@dataclass(frozen=True)
class Settings:
    """What is saved of each picture, and how it is shown to the network; ``style`` are arguments of the overlay."""

    forms: tuple[str, ...]
    probability_type: str
    inference: Inference
    style: dict[str, Any]
    overlay_suffix: str


def _segment_all(
    segmenter: Segmenter, settings: Settings, jobs: dict[ImageSource, Path], lines: JsonLines
) -> list[str]:
    """Segment and write every picture; return one line for each that failed."""
    from tqdm import tqdm

    failures = []
    for picture, stem in tqdm(jobs.items(), unit="picture", disable=None, leave=False):
        try:
            _segment(segmenter, settings, picture, outputs(stem, settings.forms, settings.overlay_suffix), lines)
        except Exception as error:
            if isinstance(error, IsnetError | OSError):
                message = named(picture.location, error)
            elif is_out_of_memory(error):
                message = f"{picture.location}: there is too little memory for it ({error}); make it smaller"
            else:
                raise
            failures.append(message)
            lines.failed(picture.location, type(error), message)
    return failures


def _segment(
    segmenter: Segmenter, settings: Settings, picture: ImageSource, files: dict[str, Path], lines: JsonLines
) -> None:
    """Segment a picture and write its files, each whole or not at all."""
    _check_targets(files.values())
    timer = StageTimer()
    arguments: dict[str, dict[str, Any]] = {
        "probabilities": {"dtype": settings.probability_type},
        "rle": {"file_name": printable(picture.name)},
    }
    with timer("read"):
        image = picture.read()
        arguments["overlay"] = {"image": image, **settings.style}
        if "geotiff" in files:
            arguments["geotiff"] = {"georeference": read_georeference(picture.location)}
    segmentation = segmenter(image, inference=settings.inference, probabilities="probabilities" in files)
    folder = next(iter(files.values())).parent
    if not folder.is_dir():  # a subfolder of --out
        make_folder(folder, "--out")
    with timer("save"):
        for form, path in files.items():
            segmentation.save(path, form, **arguments.get(form, {}))
    seconds = segmentation.seconds
    seconds = {**seconds, **timer.seconds, "read": timer.seconds["read"] + seconds.get("read", 0.0)}
    lines.segmented(picture.location, segmentation, seconds, files)


def _check_targets(files: Iterable[Path]) -> None:
    """Raise ImageError if the system takes a result's name for no file, before time is spent on the picture."""
    for path in files:
        try:
            check_target(path)
        except OSError as error:
            raise ImageError(f"{path} cannot be written: {error.strerror}") from None
