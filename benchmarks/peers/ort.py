"""ONNX Runtime on the plainly exported graph, all its optimisations on."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import Missing, Setup
from benchmarks.peers.pipeline import Network, PipelineRunner
from benchmarks.peers.plain_onnx import export


def load(setup: Setup, provider: str = "CPUExecutionProvider") -> PipelineRunner:
    """The training form under ONNX Runtime's ``provider``.

    Raises:
        Missing: ONNX Runtime, or the provider, is not there.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise Missing(f"ONNX Runtime cannot be imported ({error}); pip install onnxruntime") from None
    if provider not in onnxruntime.get_available_providers():
        raise Missing(f"this ONNX Runtime has no {provider}; pip install onnxruntime-gpu, on a machine with a GPU")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setup.threads
    options.log_severity_level = 3
    # Peers wait for their turn in one run: a waiting pool must not spin on the cores of the one that is timed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with tempfile.TemporaryDirectory() as folder:
        recipe = export(setup, Path(folder) / "plain.onnx")
        session = onnxruntime.InferenceSession(str(Path(folder) / "plain.onnx"), options, providers=[provider])
    about = f"ONNX Runtime {onnxruntime.__version__}, {provider}, plain export, {setup.threads} threads"
    return PipelineRunner(setup, _network(session), about, recipe)


def _network(session: Any) -> Network:
    name = session.get_inputs()[0].name

    def network(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.contiguous().numpy()})[0])

    return network
