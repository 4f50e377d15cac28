"""What is carried to a GPU machine without network: which packages, and files cut into pieces and put together again.

Standard library only: this runs on the bare machine before anything is installed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from isnet_trt.errors import SettingsError

MANIFEST = "pieces.json"
MEGABYTE = 10**6
RTX = "1.7.1.116"


@dataclass(frozen=True)
class Package:
    """A package of the registry.

    Attributes:
        name: in the registry.
        version: empty for the newest.
        module: what is imported; where that can be, the package is not installed.
        form: ``wheel`` for the target's Python; ``pure`` a wheel made here; ``source`` for building there.
    """

    name: str
    version: str
    module: str
    form: str = "wheel"

    @property
    def pinned(self) -> str:
        """As pip takes it."""
        return f"{self.name}=={self.version}" if self.version else self.name


PACKAGES = (
    Package("tensorrt_rtx_cu13_libs", RTX, "tensorrt_rtx_libs"),
    Package("tensorrt_rtx_cu13_bindings", RTX, "tensorrt_rtx_bindings"),
    Package("tensorrt_rtx_cu13", RTX, "tensorrt_rtx", "pure"),
    Package("pycuda", "2026.1", "pycuda", "source"),
    Package("pytools", "", "pytools"),
    Package("siphash24", "", "siphash24"),
    Package("mako", "", "mako"),
    Package("markupsafe", "", "markupsafe"),
    Package("platformdirs", "", "platformdirs"),
    Package("typing_extensions", "", "typing_extensions"),
    Package("setuptools", "", "setuptools"),
    Package("wheel", "", "wheel"),
    Package("cuda-pathfinder", "", "cuda.pathfinder"),
    Package("cuda-bindings", "", "cuda.bindings"),
    Package("onnxscript", "", "onnxscript"),
    Package("onnx_ir", "", "onnx_ir"),
    Package("ml_dtypes", "", "ml_dtypes"),
    Package("polygraphy", "0.53.6", "polygraphy"),
    Package("opencv-python-headless", "", "cv2"),
    Package("tqdm", "", "tqdm"),
)
"""TensorRT-RTX, pycuda with what it and its build need, and small ones that such a machine may lack."""


@dataclass(frozen=True)
class Piece:
    """Bytes ``begin`` … ``begin + size`` of a file of ``total`` bytes with this SHA-256, in a file called ``piece``."""

    file: str
    piece: str
    begin: int
    size: int
    total: int
    sha256: str


def cut(files: Iterable[Path], folder: Path, most: int) -> list[Path]:
    """Copy ``files`` into folders ``folder``/1, 2, … of at most ``most`` bytes each, larger files in pieces.

    Every folder has a `MANIFEST` of its pieces. Returns the folders.
    """
    groups: list[tuple[int, list[tuple[Piece, Path]]]] = []
    for piece, source in sorted(_pieces(files, most), key=lambda pair: -pair[0].size):
        place = next((i for i, (used, _) in enumerate(groups) if used + piece.size <= most), None)
        if place is None:
            place = len(groups)
            groups.append((0, []))
        used, held = groups[place]
        groups[place] = (used + piece.size, [*held, (piece, source)])
    return [_write(folder / str(i), held) for i, (_, held) in enumerate(groups, start=1)]


def _pieces(files: Iterable[Path], most: int) -> Iterator[tuple[Piece, Path]]:
    for file in files:
        total, digest = file.stat().st_size, sha256(file)
        count = max(1, -(-total // most))
        share = -(-total // count)
        for number in range(count):
            begin = number * share
            name = file.name if count == 1 else f"{file.name}.part{number:02}"
            yield Piece(file.name, name, begin, min(share, total - begin), total, digest), file


def _write(folder: Path, held: Sequence[tuple[Piece, Path]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for piece, source in held:
        with source.open("rb") as stream:
            stream.seek(piece.begin)
            (folder / piece.piece).write_bytes(stream.read(piece.size))
    listed = [asdict(piece) for piece, _ in held]
    (folder / MANIFEST).write_text(json.dumps(listed, indent=1) + "\n", "utf-8")
    return folder


def join(folders: Sequence[Path], target: Path) -> list[Path]:
    """The files whose pieces lie in ``folders``, put together in ``target`` and checked.

    Raises:
        SettingsError: a folder has no manifest, a piece is missing, or a file is damaged; the message names it.
    """
    found: dict[str, list[tuple[Piece, Path]]] = {}
    for folder in folders:
        for piece in _listed(folder):
            found.setdefault(piece.file, []).append((piece, folder))
    target.mkdir(parents=True, exist_ok=True)
    return [_join(name, pieces, target / name) for name, pieces in sorted(found.items())]


def _listed(folder: Path) -> list[Piece]:
    try:
        return [Piece(**entry) for entry in json.loads((folder / MANIFEST).read_text("utf-8"))]
    except OSError:
        raise SettingsError(
            f"{folder} has no {MANIFEST}; give the numbered folders that python -m benchmarks.gpu_check.prepare made"
        ) from None
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{folder / MANIFEST} is damaged: {error}; make the pieces again") from None


def _join(name: str, pieces: Sequence[tuple[Piece, Path]], path: Path) -> Path:
    ordered = sorted(pieces, key=lambda pair: pair[0].begin)
    first = ordered[0][0]
    with path.open("wb") as out:
        for piece, folder in ordered:
            if piece.begin != out.tell() or not (folder / piece.piece).is_file():
                break
            out.write((folder / piece.piece).read_bytes())
    if path.stat().st_size != first.total:
        held = ", ".join(piece.piece for piece, _ in ordered)
        raise SettingsError(f"{name} is not whole: there is only {held}; give all numbered folders")
    if sha256(path) != first.sha256:
        raise SettingsError(f"{name} was damaged on its way (SHA-256 differs); carry its pieces again")
    return path


def sha256(path: Path) -> str:
    """Of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
