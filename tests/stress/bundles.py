"""Mutated bundles: each opens and segments, or is refused by the project's own error that names it.

    python tests/stress/bundles.py --cases 15000

Manifests are mutated as trees and as text, models as bytes with and without the right checksum in the manifest, and
files are exchanged for FIFOs, folders, devices and links. A file that is not the one of the manifest must be refused.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import tempfile
from pathlib import Path

import fuzzing
import mutations
import numpy as np
import probe
import tiny_model

from isnet_trt import Inference, Segmenter
from isnet_trt.bundle import ONNX

MANIFEST = "bundle.json"
IMAGE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
CLASSES = 5
LARGEST = 1 << 20
"""Pixels of the network's input above which a bundle is opened but not used: it asks for the time that it takes."""
SLIDE = Inference("slide", (33, 65), (21, 43), (0.5, 1.0), flip=True)


class Bundles:
    """Mutations of a bundle of the tests' tiny model, for `Segmenter.open` and a call."""

    memory = 1 << 30

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            presets = {"default": Inference(), "ms-flip": SLIDE}
            bundle = tiny_model.write_bundle(Path(folder) / "tiny", tiny_model.labels(CLASSES), presets=presets)
            self.model = (bundle / ONNX).read_bytes()
            self.manifest = (bundle / MANIFEST).read_bytes()
        self.tree = json.loads(self.manifest)

    def start(self, folder: Path) -> None:
        """Open the sound bundle."""
        self._put(folder, self.manifest, self.model)
        self.must_fail = False
        assert self.read(folder) == fuzzing.RIGHT

    def write(self, number: int, folder: Path) -> str:
        """Write mutation ``number``."""
        chance, self.must_fail = random.Random(number), False
        kind = chance.choices(("manifest", "text", "model", "signed model", "file"), (60, 15, 5, 15, 5))[0]
        manifest, model = self.manifest, self.model
        if kind == "manifest":
            manifest = mutations.mutated_json(chance, self.tree)
        elif kind == "text":
            manifest = mutations.mutated_bytes(chance, manifest, header=len(manifest))
        elif kind != "file":
            model = mutations.mutated_bytes(chance, model)
            self.must_fail = kind == "model" and model != self.model
            manifest = self._signed(model) if kind == "signed model" else manifest
        self._put(folder, manifest, model)
        if kind == "file":
            self.must_fail = True
            name = chance.choice((MANIFEST, ONNX))
            return f"{name}: {mutations.special_file(chance, folder / name)}"
        return kind

    def _put(self, folder: Path, manifest: bytes, model: bytes) -> None:
        mutations.put(folder / MANIFEST, manifest)
        mutations.put(folder / ONNX, model)

    def _signed(self, model: bytes) -> bytes:
        """The manifest with the size and checksum of another model."""
        entry = {"bytes": len(model), "sha256": hashlib.sha256(model).hexdigest()}
        return json.dumps({**self.tree, "files": {**self.tree["files"], ONNX: entry}}).encode()

    def read(self, folder: Path) -> str:
        """Open it, and segment one image."""
        self.opened = False
        with Segmenter.open(folder, threads=1) as segmenter:
            self.opened = True
            if self.must_fail:
                return "a file was taken that is not the one of the manifest"
            if np.prod(segmenter.preprocess.size or IMAGE.shape[:2]) > LARGEST:
                return fuzzing.RIGHT
            labels = segmenter(IMAGE, inference=Inference()).labels
            fits = labels.shape == IMAGE.shape[:2] and labels.max() < segmenter.labels.count
        return fuzzing.RIGHT if fits else f"labels {labels.shape} up to {labels.max()}"

    def subject(self, folder: Path) -> str:
        """The bundle's folder while it is opened; errors of calls say what is wrong with the network."""
        return "" if self.opened else str(folder)


if __name__ == "__main__":
    sys.exit(fuzzing.run(Bundles(), probe.parser(__doc__, 15_000).parse_args()))
