"""Packaging of isnet_trt. `training/`, `export/` and `kernels/` lie at the top and are packaged as isnet_trt.training,
isnet_trt.export and isnet_trt.kernels through the links inside `isnet_trt/`: no common name is taken.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'"(.+)"', (ROOT / "isnet_trt" / "_version.py").read_text("utf-8"))
RTX_PLATFORM = 'sys_platform == "linux" and platform_machine == "x86_64"'
TRITON = 'triton>=3.5; sys_platform == "linux"'

RUNTIME = ["numpy>=1.26", "opencv-python>=4.10", "onnxruntime>=1.22", "tqdm>=4.66"]
BUILD = [
    "torch>=2.9",
    "onnx>=1.18",
    "ml_dtypes>=0.4",
    "onnxscript>=0.5",
    "onnx-graphsurgeon>=0.5",
    "polygraphy>=0.49",
    "matplotlib>=3.8",
    TRITON,
]
EXTRAS = {
    "build": BUILD,
    "train": ["torch>=2.9", "matplotlib>=3.8", "Pillow>=10", "PyYAML>=6", "scipy>=1.11", "tensorboard>=2.16"],
    "bench": [*BUILD, "scipy>=1.11", "nvidia-ml-py>=12"],
    "gpu": ["tensorrt>=10.13", "pycuda>=2025.1", "cuda-bindings>=13"],
    "rtx": [f"tensorrt-rtx-cu13>=1.7; {RTX_PLATFORM}", "cuda-bindings>=13"],
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "psutil>=5.9",
        "mypy>=1.15",
        "ruff>=0.12",
        "import-linter>=2.6",
        "pre-commit>=4",
        "types-PyYAML",
        "types-psutil",
    ],
}

setup(
    name="isnet_trt",
    version=VERSION.group(1) if VERSION else "0",
    description="ISNet semantic segmentation on TensorRT and ONNX Runtime: from a checkpoint to a label map",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["isnet_trt", "isnet_trt.*"]),
    package_data={
        "isnet_trt": ["py.typed"],
        "isnet_trt.recipes": ["labels.json"],
        "isnet_trt.training": ["assets/*"],
        "isnet_trt.export": ["pictures/*"],
    },
    install_requires=RUNTIME,
    extras_require=EXTRAS,
)
