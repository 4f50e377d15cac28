"""Ask a Triton Inference Server for label maps: client.py URL MODEL IMAGE… [--preset PRESET] [--out FOLDER]

URL is HOST:PORT of the server's gRPC service. Each image file is sent as it is and decoded by the server. Its label map
is written to FOLDER/STEM_labels.png (class ids, 8 bits; 16 above 256 classes); the shares of its classes are printed.
It needs tritonclient[grpc], numpy and OpenCV, not isnet_trt. Exit status: 0 all were answered, 1 some were not.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException


def labels_of(client: triton.InferenceServerClient, model: str, content: bytes, preset: str) -> np.ndarray:
    """The label map (H, W) of an encoded image."""
    data = np.frombuffer(content, np.uint8)[None]
    image = triton.InferInput("ENCODED", data.shape, "UINT8")
    image.set_data_from_numpy(data)
    # Without a list of outputs the server would also send the probabilities, 4 bytes for each class and pixel.
    outputs = [triton.InferRequestedOutput("LABELS")]
    return client.infer(model, [image], outputs=outputs, parameters={"preset": preset}).as_numpy("LABELS")[0]


def main() -> int:
    """Ask for each image; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--out", type=Path, default=Path("labels"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    failures = 0
    with triton.InferenceServerClient(arguments.url) as client:
        try:
            config = client.get_model_config(arguments.model).config
        except InferenceServerException as error:
            print(f"error: {arguments.url}, model {arguments.model}: {error.message()}", file=sys.stderr)
            return 1
        names = json.loads(config.parameters["names"].string_value)
        for path in arguments.images:
            try:
                labels = labels_of(client, arguments.model, path.read_bytes(), arguments.preset)
            except (InferenceServerException, OSError) as error:
                failures += 1
                print(f"error: {path}: {error}", file=sys.stderr)
                continue
            cv2.imwrite(str(arguments.out / f"{path.stem}_labels.png"), labels)
            counts = sorted(zip(*np.unique(labels, return_counts=True), strict=True), key=lambda pair: -pair[1])
            print(f"{path}:", ", ".join(f"{names[label]} {count / labels.size:.1%}" for label, count in counts))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
