"""predict of a video: every frame with its labels, what is left out by choice, what is kept of one that ends early."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from children import PATIENCE, run_python

from isnet_trt import Segmenter, cli
from isnet_trt.commands import predict
from isnet_trt.errors import EngineError, ImageError
from isnet_trt.pictures import video
from isnet_trt.pictures.video import VideoReader, is_video

FRAMES, RATE = 12, 10.0
TOLERANCE = 12
"""Mean difference by which MJPG may change the frames here; two frames differ by more than 40."""


def write_video(path: Path, frames: int = FRAMES, size: tuple[int, int] = (40, 70), codec: str = "MJPG") -> Path:
    height, width = size
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), RATE, (width, height))
    rng = np.random.default_rng(0)
    for _ in range(frames):
        coarse = rng.integers(0, 256, (3, 4, 3)).astype(np.uint8)
        writer.write(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR))
    writer.release()
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_video(tmp_path / "in.avi")


@pytest.fixture
def run(bundle: Path, tmp_path: Path) -> Callable[..., int]:
    def command(*arguments: object, out: object = tmp_path / "out.avi") -> int:
        return cli.run(predict.main, [str(argument) for argument in (bundle, *arguments, "--out", out)])

    return command


def frames_of(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames


def rate_of(path: Path) -> float:
    return float(cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS))


def plain_loop(bundle: Path, clip: Path, shown: list[int]) -> list[np.ndarray]:
    """The frames, frame i blended with the labels of frame ``shown[i]``."""
    frames = frames_of(clip)
    with Segmenter.open(bundle) as segmenter:
        labelled = [segmenter(frames[index], order="bgr") for index in shown]
    pairs = zip(frames, labelled, strict=False)
    return [result.overlay(frame, legend=False, hatching=False, order="bgr")[:, :, ::-1] for frame, result in pairs]


def check_equal(got: list[np.ndarray], want: list[np.ndarray]) -> None:
    assert len(got) == len(want)
    differences = [np.abs(a.astype(int) - b).mean() for a, b in zip(got, want, strict=True)]
    assert max(differences) < TOLERANCE


def test_a_video_beside_its_source(run: Any, clip: Path, tmp_path: Path) -> None:
    assert run(clip, "--side-by-side", "--alpha", 0) == 0
    for frame, source in zip(frames_of(tmp_path / "out.avi"), frames_of(clip), strict=True):
        assert frame.shape == (40, 142, 3)
        assert np.abs(frame[:, :70].astype(int) - source).mean() < TOLERANCE


@pytest.mark.parametrize("every", [1, 5])
def test_every_frame_has_its_labels(
    run: Any, bundle: Path, clip: Path, tmp_path: Path, every: int, capsys: Any
) -> None:
    assert run(clip, "--show-every", every) == 0
    want = plain_loop(bundle, clip, [index // every * every for index in range(FRAMES)])
    check_equal(frames_of(tmp_path / "out.avi"), want)
    assert rate_of(tmp_path / "out.avi") == RATE
    assert "12 frames in" in capsys.readouterr().err
    other = [index // every * every for index in [*range(1, FRAMES), 0]]
    with pytest.raises(AssertionError):  # the tolerance tells frames apart
        check_equal(frames_of(tmp_path / "out.avi"), [want[index] for index in other])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.avi", "out.avi"]


@pytest.mark.parametrize(("rate", "source"), [(5, list(range(0, 12, 2))), (20, [i // 2 for i in range(23)])])
def test_another_rate_keeps_the_speed(
    run: Any, bundle: Path, clip: Path, tmp_path: Path, rate: int, source: list[int]
) -> None:
    assert run(clip, "--fps", rate) == 0
    want = plain_loop(bundle, clip, list(range(FRAMES)))
    check_equal(frames_of(tmp_path / "out.avi"), [want[index] for index in source])
    assert rate_of(tmp_path / "out.avi") == rate


def write_irregular(path: Path, times: list[int]) -> Path:
    """Write a Matroska file whose frames have these times in milliseconds, in the place of regular ones."""
    content = bytearray(write_video(path, len(times), codec="mp4v").read_bytes())
    position = content.index(b"\x1f\x43\xb6\x75")  # the cluster
    for index, milliseconds in enumerate(times):
        block = b"\x81" + round(index * 1000 / RATE).to_bytes(2, "big")  # track 1, time
        position = content.index(block, position)
        content[position + 1 : position + 3] = milliseconds.to_bytes(2, "big")
        position += len(block)
    path.write_bytes(content)
    return path


def test_irregular_times_are_kept(run: Any, bundle: Path, tmp_path: Path) -> None:
    times = [0, 100, 200, 210, 220, 700, 800, 900, 910, 1000, 1050, 1100]
    irregular = write_irregular(tmp_path / "in.mkv", times)
    want = plain_loop(bundle, irregular, list(range(FRAMES)))
    assert run(irregular) == 0
    check_equal(frames_of(tmp_path / "out.avi"), [want[index] for index in (0, 1, 2, 2, 2, 2, 2, 5, 6, 7, 9, 11)])
    assert run(write_irregular(tmp_path / "in.mkv", [*times[:-1], 32_000])) == 0  # beyond its length: not believed
    assert len(frames_of(tmp_path / "out.avi")) == FRAMES


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.MOV"])
def test_containers(run: Any, tmp_path: Path, name: str) -> None:
    odd = write_video(tmp_path / "odd.avi", size=(41, 71))
    assert run(odd, out=tmp_path / name) == 0
    assert [frame.shape for frame in frames_of(tmp_path / name)] == [(40, 70, 3)] * FRAMES


def test_frames_that_are_not_taken_in_time_are_dropped_by_choice(clip: Path) -> None:
    with VideoReader(str(clip), drop=True) as reader:
        frames = iter(reader)
        next(frames)
        reader._thread.join(PATIENCE)
        rest = [round(frame.seconds * RATE) for frame in frames]
    assert (reader.read, reader.dropped) == (FRAMES, FRAMES - 1 - len(rest))
    assert rest == list(range(FRAMES - len(rest), FRAMES))
    assert len(rest) <= 5
    with VideoReader(str(clip)) as reader:
        times = [(time.sleep(0.005), frame.seconds)[1] for frame in reader]
    assert times == [index / RATE for index in range(FRAMES)]
    assert reader.dropped == 0


def test_what_is_a_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "7").write_bytes(b"")
    (tmp_path / "folder.mp4").mkdir()
    videos = ["0", "/dev/video0", "a.mp4", "A.MOV", "rtsp://camera/1", "RTSP://x", "https://example.org/a.mp4?x=1.png"]
    others = ["7", "a.png", "folder.mp4", "https://example.org/a.jpg?from=b.mp4", "photos", "1234"]
    assert [name for name in videos + others if is_video(name)] == videos


# --- bad input


def refused(run: Any, message: str, capsys: Any, *arguments: object, **options: object) -> None:
    assert run(*arguments, **options) == cli.ERROR
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_sources_that_are_no_video(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    write_video(tmp_path / "empty.avi", frames=0)
    (tmp_path / "nothing.avi").write_bytes(b"")
    for source, message in [
        (tmp_path / "gone.mp4", "there is no such video file"),
        (tmp_path / "text.mp4", "text.mp4: no video whose format and codec OpenCV knows"),
        (tmp_path / "nothing.avi", "nothing.avi: no video"),
        ("rtsp://me:word@127.0.0.1:9/x", "rtsp://me:***@127.0.0.1:9/x: no stream or camera that answers"),
        ("321", "no stream or camera that answers"),
    ]:
        refused(run, message, capsys, source)
    assert run(tmp_path / "empty.avi") == cli.ERROR
    assert "empty.avi: not a single frame could be read" in capsys.readouterr().err
    assert not (tmp_path / "out.avi").exists()
    assert len(list(tmp_path.iterdir())) == 3


def test_arguments_that_do_not_fit(run: Any, clip: Path, tmp_path: Path, capsys: Any) -> None:
    before = clip.read_bytes()
    for arguments, out, message in [
        ((clip,), tmp_path, "the result is a file that ends in .avi, .mkv"),
        ((clip,), tmp_path / "out.webm", "the result is a file that ends in"),
        ((clip,), tmp_path / "none" / "out.avi", "there is no folder"),
        ((clip,), clip, "would be replaced"),
        ((clip, clip), tmp_path / "out.avi", "one is segmented at a time"),
        ((clip, "--save", "rle"), tmp_path / "out.avi", "--save belongs to pictures"),
        ((clip, "--overlay-format", "webp"), tmp_path / "out.avi", "--overlay-format belongs to pictures"),
        ((clip, "--json"), tmp_path / "out.avi", "--json belongs to pictures"),
        ((clip, "--no-overlay"), tmp_path / "out.avi", "--no-overlay belongs to pictures"),
        (("photo.jpg", "--fps", 5), tmp_path / "out", "--fps belongs to videos"),
        (("photo.jpg", "--show-every", 1), tmp_path / "out", "--show-every belongs to videos"),
        (("photo.jpg", "--no-drop"), tmp_path / "out", "--drop belongs to videos"),
    ]:
        refused(run, message, capsys, *arguments, out=out)
    assert clip.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["in.avi"]


def test_a_missing_codec(run: Any, clip: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(video.CODECS, ".avi", "zzzz")
    (tmp_path / "out.avi").write_bytes(b"old")
    assert run(clip) == cli.ERROR
    assert "OpenCV has no codec zzzz for .avi files of 40x70 pixels" in capsys.readouterr().err.replace(
        "70x40", "40x70"
    )
    assert (tmp_path / "out.avi").read_bytes() == b"old"


def write_and_lose(path: Path, image: np.ndarray) -> None:
    """Frames that are in the file no longer when it is complete."""
    with video.writing(path, RATE) as writer:
        writer.write(image, (FRAMES - 1) / RATE)
        writer._writer.release()
        writer.path.write_bytes(b"")


def write_two_sizes(path: Path, image: np.ndarray) -> None:
    with video.writing(path, RATE) as writer:
        writer.write(image, 0)
        writer.write(image[:20], 0.1)


def test_a_result_that_cannot_be_written_whole(clip: Path, tmp_path: Path) -> None:
    (image, *_) = frames_of(clip)
    with pytest.raises(ImageError, match=r"out\.avi: only 0 of 12 frames could be written"):
        write_and_lose(tmp_path / "out.avi", image)
    with pytest.raises(ImageError, match="a frame is 20x70, those before it 40x70"):
        write_two_sizes(tmp_path / "out.avi", image)
    assert [path.name for path in tmp_path.iterdir()] == ["in.avi"]


# --- what ends early is kept until there


def test_a_video_that_is_cut_off(run: Any, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) // 2])
    assert run(clip) == cli.FAILED
    count = len(frames_of(tmp_path / "out.avi"))
    assert 0 < count < FRAMES
    assert f"in.avi ended after {count} of" in capsys.readouterr().err


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[str]:
    """A server that sends three seconds of a video and hangs up."""
    content = write_video(tmp_path / "live.ts", 30, codec="mp4v").read_bytes()
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(content)

    threading.Thread(target=serve, daemon=True).start()
    with server:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


def test_a_stream_that_stops(run: Any, stream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(stream, "--no-drop") == cli.FAILED
    assert frames_of(tmp_path / "out.avi")
    assert f"failed: {stream} ended after 30 frames" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"), [(EngineError("broken"), cli.ERROR), (KeyboardInterrupt(), cli.INTERRUPTED)]
)
def test_frames_before_an_error_or_ctrl_c_are_kept(
    run: Any, clip: Path, tmp_path: Path, error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Segmenter.map

    def broken(self: Segmenter, *arguments: Any, **options: Any) -> Iterator[Any]:
        for number, result in enumerate(whole(self, *arguments, **options)):
            if number == 4:
                raise error
            yield result

    monkeypatch.setattr(Segmenter, "map", broken)
    assert run(clip) == status
    assert len(frames_of(tmp_path / "out.avi")) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.avi", "out.avi"]


def test_the_example_prints_a_line_for_every_second(bundle: Path, clip: Path) -> None:
    ran = run_python(Path(__file__).parents[2] / "examples" / "video" / "video.py", bundle, clip, check=True)
    assert [line.split()[:3] for line in ran.stdout.splitlines()] == [["0.0", "s", "class"], ["1.0", "s", "class"]]


def test_the_benchmark_compares_with_a_plain_loop(bundle: Path, tmp_path: Path) -> None:
    from benchmarks import video as benchmark

    clip = write_video(tmp_path / "clip.avi")
    command = f"--bundle {bundle} --video {clip} --rounds 1 --threads 1 --out {tmp_path / 'result.json'}"
    assert cli.run(benchmark.main, command.split()) == 0
    records = json.loads((tmp_path / "result.json").read_text("utf-8"))["records"]
    assert [record["case"] for record in records] == ["video.predict", "video.plain loop"]
    assert all(record["figures"]["frames_per_s"] > 0 for record in records)
