"""``predict`` of a video, stream or camera: read, segment and write at the same time, each frame with its colours."""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from isnet_trt import cli
from isnet_trt.commands.inference_options import choose_inference
from isnet_trt.errors import ImageError, IsnetError, SettingsError
from isnet_trt.files import refuse_inputs
from isnet_trt.pictures.files import Image
from isnet_trt.pictures.video import Frame, VideoReader, VideoWriter, check_video_target, is_live, slot, writing
from isnet_trt.runtime.segmentation import Segmentation
from isnet_trt.runtime.segmenter import Segmenter
from isnet_trt.settings import Inference

_BACKLOG = 3
"""Frames that wait to be written."""


def add_video(parser: argparse.ArgumentParser) -> None:
    """The options of a video."""
    add = parser.add_argument_group("a video, stream (rtsp://…) or camera (its number) as the one IMAGE").add_argument
    add("--fps", type=_rate, metavar="F", help="frames/s of the result (default: the source's); its speed stays")
    every = "show every N-th frame to the network; those between get the labels of the last one (default: 1)"
    add("--show-every", type=cli.positive, metavar="N", help=every)
    drop = "leave frames out that cannot be segmented in time (default: of streams and cameras)"
    add("--drop", action=argparse.BooleanOptionalAction, help=drop)


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 < rate <= 1000:
        raise ValueError
    return rate


_rate.__name__ = "number of frames/s"  # argparse has this in its error messages


def refuse_for_pictures(arguments: argparse.Namespace) -> None:
    """Raise SettingsError if an option of `add_video` is given."""
    for name in ("fps", "show_every", "drop"):
        if getattr(arguments, name) is not None:
            raise SettingsError(f"--{name.replace('_', '-')} belongs to videos; no IMAGE is one")


def overlay_style(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `Segmentation.overlay` for the options that are given."""
    return {name: value for name in ("alpha", "side_by_side") if (value := getattr(arguments, name)) is not None}


def run(arguments: argparse.Namespace) -> int:
    """Segment the video in ``arguments.images`` and write ``arguments.out``; returns the exit status."""
    source, out = _checked(arguments)
    options = {"engine": arguments.engine, "threads": arguments.threads, "device": arguments.device}
    drop = is_live(source) if arguments.drop is None else arguments.drop
    with VideoReader(source, drop) as reader, Segmenter.open(arguments.bundle, **options) as segmenter:
        inference = choose_inference(segmenter.presets, arguments)
        cli.note(f"{segmenter.description}; {inference.describe()}")
        rate = arguments.fps or reader.rate
        start = time.perf_counter()
        with writing(out, rate) as writer:
            style = overlay_style(arguments)
            stopped = segment_video(segmenter, inference, reader, writer, arguments.show_every or 1, style)
            if not writer.frames:
                raise stopped or ImageError(f"{reader.source}: not a single frame could be read")
        seconds = time.perf_counter() - start
    dropped = f", {reader.dropped} of {reader.read} left out" if reader.dropped else ""
    speed = f"{writer.frames / seconds:.1f} frames/s"
    cli.note(f"{writer.frames} frames in {seconds:.1f} s ({speed}){dropped}; written: {out}")
    if stopped is not None:
        raise stopped
    if reader.is_cut_off:
        promised = f" of {reader.count}" if reader.count else ""
        cli.note(f"failed: {reader.source} ended after {reader.read}{promised} frames")
        return cli.FAILED
    return 0


def _checked(arguments: argparse.Namespace) -> tuple[str, Path]:
    """Source and result; SettingsError for what does not fit a video."""
    if len(arguments.images) > 1:
        raise SettingsError("of videos, one is segmented at a time: give no other IMAGE beside it")
    for name in ("save", "json", "recursive", "overlay_format", "probability_type"):
        if getattr(arguments, name):
            raise SettingsError(f"--{name.replace('_', '-')} belongs to pictures; the result of a video is a video")
    if not arguments.overlay:
        raise SettingsError("--no-overlay belongs to pictures; the result of a video is its overlay")
    source, out = arguments.images[0], arguments.out
    check_video_target(out)
    refuse_inputs([out], [Path(source)], "--out")
    return source, out


@dataclass
class _Player:
    """The frames in order, each with whether the network gets it, between the reader and the writer."""

    frames: Iterable[Frame]
    rate: float
    show_every: int
    waiting: deque[tuple[Frame, bool]] = field(default_factory=deque)

    def shown(self) -> Iterator[Image]:
        """The frames that the network gets: of those that have a place in the result, every N-th."""
        last, number = -1, 0
        for frame in self.frames:
            if slot(frame.seconds, self.rate) <= last:
                continue
            last = slot(frame.seconds, self.rate)
            is_shown = number % self.show_every == 0
            self.waiting.append((frame, is_shown))
            number += 1
            if is_shown:
                yield frame.image

    def labelled(self, segmentations: Iterable[Segmentation]) -> Iterator[tuple[Frame, Segmentation]]:
        """Every frame with the labels of the last one that the network got."""
        last = None
        for segmentation in segmentations:
            while last is not None and not self.waiting[0][1]:
                yield self.waiting.popleft()[0], last
            last = segmentation
            yield self.waiting.popleft()[0], last
        while last is not None and self.waiting and not self.waiting[0][1]:
            yield self.waiting.popleft()[0], last


def segment_video(
    segmenter: Segmenter,
    inference: Inference,
    reader: VideoReader,
    writer: VideoWriter,
    show_every: int = 1,
    style: Mapping[str, Any] = MappingProxyType({}),
) -> BaseException | None:
    """Write every frame; return what ended it early, Ctrl-C or an error after which the frames until then are kept.

    ``style`` are arguments of `Segmentation.overlay`.
    """
    from tqdm import tqdm

    player = _Player(reader, writer.rate, show_every)
    pending: deque[Future[None]] = deque()
    stopped: BaseException | None = None
    bar = tqdm(total=reader.count or None, unit="frame", disable=None, leave=False)
    with ThreadPoolExecutor(1) as pool, bar:
        try:
            for frame, segmentation in player.labelled(segmenter.map(player.shown(), order="bgr", inference=inference)):
                pending.append(pool.submit(_draw, writer, frame, segmentation, style))
                if len(pending) > _BACKLOG:
                    pending.popleft().result()
                bar.update()
        except (IsnetError, KeyboardInterrupt) as error:
            stopped = error
        while pending:
            try:
                pending.popleft().result()
            except IsnetError as error:
                stopped = stopped or error
    return stopped


def _draw(writer: VideoWriter, frame: Frame, segmentation: Segmentation, style: Mapping[str, Any]) -> None:
    """Write a frame's overlay, without what would change from frame to frame: the legend's size, and hatching."""
    overlay = segmentation.overlay(frame.image, legend=False, hatching=False, order="bgr", **style)
    writer.write(overlay[:, :, ::-1], frame.seconds)
