"""The options that say how a picture is shown to the network, for the commands that segment."""

from __future__ import annotations

import argparse

from isnet_trt import cli
from isnet_trt.settings import Inference, adjust_preset


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


def choose_inference(presets: dict[str, Inference], arguments: argparse.Namespace) -> Inference:
    """The preset with the fields that options give replaced; SettingsError if they do not make sense together."""
    names = ("mode", "window", "stride", "scales", "flip", "softmax_before_resize")
    options = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return adjust_preset(presets, arguments.preset, fields, "--")
