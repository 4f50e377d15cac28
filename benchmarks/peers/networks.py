"""The network under other libraries, each in its best form, inside the evaluation of `benchmarks.peers.evaluation`.

Under PyTorch it is the folded inference form; elsewhere the graph that a user gets without this project:
``torch.onnx.export`` of the training form in evaluation mode. The functions for a GPU are written from the libraries'
documentation and have not run on one.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from benchmarks.peers import Missing, Setup
from benchmarks.peers.evaluation import Network, PipelineRunner
from benchmarks.zoo import export_onnx
from isnet_trt.recipes import Recipe
from isnet_trt.training.checkpoint import Checkpoint, load_model
from isnet_trt.training.model import inference_form

_SAMPLE = (2, 3, 73, 105)
"""Input that the exporter traces the network with; every size but the channels stays free."""


def device() -> str:
    """``cuda`` where torch has one, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def on_device(model: Network, dtype: torch.dtype = torch.float32) -> Network:
    """``model`` with input and output on the CPU in float32, its own input channels last and of ``dtype``."""

    def network(x: Tensor) -> Tensor:
        return model(x.to(device(), dtype, memory_format=torch.channels_last)).float().cpu()

    return network


def folded(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The network with batch-norm folded and contexts collapsed, channels last, on a GPU if torch has one."""
    model = inference_form(load_model(checkpoint)).to(device(), dtype)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def open_session(
    model: onnx.ModelProto | str | os.PathLike[str], threads: int, provider: str = "CPUExecutionProvider"
) -> Any:
    """An ``onnxruntime.InferenceSession`` with all optimisations whose idle threads sleep.

    Several sessions wait for their turn in one run: a waiting pool must not spin on the cores of the one that is timed.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # failures are raised
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else os.fspath(model)
    return onnxruntime.InferenceSession(source, options, providers=[provider])


def library(module: str, package: str) -> Any:
    """A library that not everyone has.

    Raises:
        Missing: it cannot be imported; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Missing(f"{module} cannot be imported ({error}); pip install {package}") from None


def eager(setup: Setup) -> PipelineRunner:
    """PyTorch eager."""
    torch.set_num_threads(setup.threads)
    checkpoint = setup.checkpoint()
    about = f"PyTorch {torch.__version__} eager, {device()}, folded, channels last, {setup.threads} threads"
    return PipelineRunner(setup, on_device(folded(checkpoint)), about, checkpoint.recipe)


def compiled(setup: Setup) -> PipelineRunner:
    """torch.compile with frozen weights, half precision on a GPU; an input shape is compiled when it is first seen."""
    if device() == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise Missing("torch.compile needs a C++ compiler on the CPU, and there is none (apt install g++)")
    torch.set_num_threads(setup.threads)
    torch._inductor.config.freezing = True
    checkpoint = setup.checkpoint()
    dtype = torch.float16 if device() == "cuda" else torch.float32
    network = torch.compile(folded(checkpoint, dtype), dynamic=False)
    about = f"torch.compile {torch.__version__}, {device()}, {dtype}, frozen, {setup.threads} threads"
    return PipelineRunner(setup, on_device(network, dtype), about, checkpoint.recipe)


def torch_tensorrt(setup: Setup) -> PipelineRunner:
    """torch.compile's TensorRT backend (docs.pytorch.org/TensorRT, "Torch-TensorRT torch.compile backend")."""
    if not torch.cuda.is_available():
        raise Missing("Torch-TensorRT needs an NVIDIA GPU, and torch sees none")
    module = library("torch_tensorrt", "torch-tensorrt")
    checkpoint = setup.checkpoint()
    network = torch.compile(folded(checkpoint, torch.float16), backend="torch_tensorrt", dynamic=False)
    about = f"Torch-TensorRT {module.__version__}, fp16"
    return PipelineRunner(setup, on_device(network, torch.float16), about, checkpoint.recipe)


def onnxruntime_cpu(setup: Setup, provider: str = "CPUExecutionProvider") -> PipelineRunner:
    """ONNX Runtime with all its optimisations on the exported graph."""
    onnxruntime = library("onnxruntime", "onnxruntime")
    if provider not in onnxruntime.get_available_providers():
        raise Missing(f"this ONNX Runtime has no {provider}; pip install onnxruntime-gpu, on a machine with a GPU")
    with exported(setup) as (graph, recipe):
        session = open_session(graph, setup.threads, provider)

    def network(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"image": x.contiguous().numpy()})[0])

    about = f"ONNX Runtime {onnxruntime.__version__}, {provider}, plain export, {setup.threads} threads"
    return PipelineRunner(setup, network, about, recipe)


def onnxruntime_cuda(setup: Setup) -> PipelineRunner:
    """The same with ONNX Runtime's CUDA provider."""
    return onnxruntime_cpu(setup, "CUDAExecutionProvider")


def openvino_cpu(setup: Setup) -> PipelineRunner:
    """OpenVINO's CPU plugin in float32 (docs.openvino.ai, "Optimizing for latency")."""
    openvino = library("openvino", "openvino")
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    settings["INFERENCE_NUM_THREADS"] = str(setup.threads)
    with exported(setup) as (graph, recipe):
        try:
            model = openvino.Core().compile_model(str(graph), "CPU", settings)
        except RuntimeError as error:
            raise Missing(f"OpenVINO cannot load the plain graph: {error}") from None

    def network(x: Tensor) -> Tensor:
        return torch.from_numpy(model([x.contiguous().numpy()])[0].copy())

    about = f"OpenVINO {openvino.__version__}, CPU, f32, plain export, {setup.threads} threads"
    return PipelineRunner(setup, network, about, recipe)


@contextlib.contextmanager
def exported(setup: Setup) -> Iterator[tuple[Path, Recipe]]:
    """A temporary file with the exported training form (input ``image``; batch, height and width free), and its recipe.

    Raises:
        Missing: the exporter failed, or there is no checkpoint.
    """
    checkpoint = setup.checkpoint()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.onnx"
        try:
            sample = torch.zeros(_SAMPLE)
            export_onnx(load_model(checkpoint), path, sample, input_name="image", external_data=False)
        except Exception as error:
            raise Missing(f"the training form cannot be exported: {error}") from None
        yield path, checkpoint.recipe
