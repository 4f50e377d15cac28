"""Packaging of isnet_trt. `training/`, `export/` and `kernels/` lie at the top and are installed as isnet_trt.training,
isnet_trt.export and isnet_trt.kernels, so that no common name is taken.

They are mapped by `package_dir`, so that a checkout without symbolic links (`core.symlinks=false`, an unpacked zip)
builds the same wheel. The links inside `isnet_trt/` are for tools that look at folders: mypy, import-linter, and a
checkout that is not installed.
"""

import os
import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'"(.+)"', (ROOT / "isnet_trt" / "_version.py").read_text("utf-8"))
RTX_PLATFORM = 'sys_platform == "linux" and platform_machine == "x86_64"'
TRITON = 'triton>=3.5; sys_platform == "linux"'
NVTX = 'nvtx>=0.2.10; sys_platform != "darwin"'

AT_THE_TOP = ("training", "export", "kernels")
URL = os.environ.get("ISNET_TRT_URL", "").rstrip("/")
"""The repository's address on the web, where there is one, for the links of an index page."""
CLASSIFIERS = [
    "Development Status :: 4 - Beta",
    "Environment :: Console",
    "Environment :: GPU :: NVIDIA CUDA",
    "Intended Audience :: Developers",
    "Intended Audience :: Science/Research",
    "Operating System :: OS Independent",
    "Programming Language :: Python :: 3",
    "Programming Language :: Python :: 3 :: Only",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Topic :: Scientific/Engineering :: Image Recognition",
    "Typing :: Typed",
]


def packages() -> list[str]:
    """Every package by the name that it is imported by."""
    inside = [name for name in find_packages(include=["isnet_trt", "isnet_trt.*"]) if _top(name) not in AT_THE_TOP]
    top = find_packages(include=[name for top in AT_THE_TOP for name in (top, f"{top}.*")])
    return [*inside, *(f"isnet_trt.{name}" for name in top)]


def long_description() -> str:
    """README.md for a package index, where links between files lead nowhere: absolute with `URL`, else plain text."""
    text = (ROOT / "README.md").read_text("utf-8")
    if not URL:
        text = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n*", "", text)
    return re.sub(r"\[([^\]]*)\]\((?!https?:)([^)]*)\)", rf"[\1]({URL}/blob/main/\2)" if URL else r"\1", text)


def _top(package: str) -> str:
    return package.split(".")[1] if "." in package else ""


# OpenCV as most machines have it. In containers opencv-python-headless does the same (docs/install.md).
RUNTIME = ["numpy>=1.26", "opencv-python>=4.10", "tqdm>=4.66"]
WEIGHTS = ["torch>=2.9", "safetensors>=0.4"]
PAGES = ["matplotlib>=3.8", "markdown-it-py>=3"]
BUILD = [
    *WEIGHTS,
    "onnx>=1.18",
    "ml_dtypes>=0.4",
    "onnx-ir>=0.1.16",
    "onnxscript>=0.5",
    "onnx-graphsurgeon>=0.5",
    "polygraphy>=0.49",
    *PAGES,
    TRITON,
]
EXTRAS = {
    "cpu": ["onnxruntime>=1.22"],
    "gpu-ort": ["onnxruntime-gpu[cuda,cudnn]>=1.22", "cuda-bindings>=13"],
    "build": BUILD,
    "train": [*WEIGHTS, *PAGES, "Pillow>=10", "PyYAML>=6", "scipy>=1.11", "tensorboard>=2.16"],
    "bench": [*BUILD, "scipy>=1.11", "nvidia-ml-py>=12", "psutil>=5.9", "tabulate>=0.9"],
    "gpu": ["tensorrt>=10.6,<12", "cuda-bindings>=13"],
    "pycuda": ["pycuda>=2025.1", "cuda-bindings>=13"],
    "rtx": [f"tensorrt-rtx-cu13>=1.7; {RTX_PLATFORM}", "cuda-bindings>=13"],
    "coco": ["pycocotools>=2.0.7"],
    "geo": ["rasterio>=1.3.10"],
    "ray": ["ray[data,serve]>=2.50", "pyarrow>=17", "starlette>=0.40"],
    "completion": ["shtab>=1.7"],
    "profile": [NVTX],
    # Of tests and benchmarks (make test-networks); transformers needs Python 3.11.
    "networks": [
        "segmentation-models-pytorch>=0.5",
        "timm>=1",
        "torchvision>=0.24",
        "monai>=1.5",
        "Pillow>=10",
        'transformers>=5; python_version >= "3.11"',
        'rapidocr-onnxruntime>=1.4; python_version < "3.13"',
    ],
    "docs": ["mkdocs-material>=9.7", "mkdocstrings-python>=2"],
    "dev": [
        "pytest>=8",
        "pytest-forked>=1.7.5",
        "pytest-timeout>=2.4",
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "psutil>=5.9",
        "shtab>=1.7",
        "pycocotools>=2.0.7",
        "rasterio>=1.3.10",
        "Pillow>=10",
        NVTX,
        "prometheus-client>=0.20",
        "mypy>=1.15",
        "ruff>=0.12",
        "import-linter>=2.6",
        "pre-commit>=4",
        "types-PyYAML",
        "types-tabulate",
        "types-psutil",
    ],
}

setup(
    name="isnet_trt",
    version=VERSION.group(1) if VERSION else "0",
    description="ISNet semantic segmentation on TensorRT and ONNX Runtime: from a checkpoint to a label map",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    url=URL or None,
    project_urls={"Paper": "https://arxiv.org/abs/2108.12382"},
    keywords="semantic segmentation, ISNet, TensorRT, ONNX Runtime, quantisation, inference",
    classifiers=CLASSIFIERS,
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=packages(),
    package_dir={f"isnet_trt.{name}": name for name in AT_THE_TOP},
    package_data={
        "isnet_trt": ["py.typed", "markdown.js", "c_api/*"],
        "isnet_trt.evaluation": ["confusion.js"],
        "isnet_trt.recipes": ["labels.json"],
        "isnet_trt.export": ["pictures/*"],
    },
    entry_points={"console_scripts": ["isnet-trt = isnet_trt.__main__:main"]},
    install_requires=RUNTIME,
    extras_require=EXTRAS,
)
