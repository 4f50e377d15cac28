"""What stands in for a GPU in a dry run (``--gpu-dry-run``): the host's memory, reference kernels, ONNX Runtime.

The bodies of the tests run in their own processes, within their limits, and their results are written as on a GPU. The
figures say nothing about a GPU; what the doubles cannot do is a part that could not run, with the reason.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cuda_host import ReferenceKernels

from benchmarks import gpu_stages
from isnet_trt import export
from isnet_trt.cuda import gpu as gpu_module
from tests.gpu import engines
from tests.gpu.conftest import DRY_GPU
from tests.gpu.host import HostTarget, use_cpu
from tests.gpu.record import CannotRun
from tests.gpu.target import Target
from tests.kernels.variants import Variant

VERSION = "10.15.1.29"
_LEAVES = "the dry run has no {}: it ends here"


class DryTarget(HostTarget):
    """`HostTarget` with the folder, seed and choice of ``target``."""

    def __init__(self, target: Target) -> None:
        super().__init__(target.folder, ReferenceKernels)
        self.quick, self.seed, self.bundles = target.quick, target.seed, target.bundles
        self.launches = True

    def architecture(self) -> tuple[str, int]:
        return DRY_GPU.compute_capability, 90

    def variants(self) -> list[Variant]:
        if not self.launches:
            raise CannotRun(_LEAVES.format("GPU to launch kernels on"))
        return super().variants()

    def compile(self, retry: bool = False) -> list[str]:
        raise CannotRun(_LEAVES.format("GPU to compile kernels for"))


class TensorRT(ModuleType):
    """TensorRT's Python API as `tests.gpu.engines` uses it: an engine is the ONNX graph, and ONNX Runtime runs it."""

    __version__ = VERSION
    BuilderFlag = SimpleNamespace(TF32=0)
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    ProfilingVerbosity = SimpleNamespace(DETAILED=2)
    LayerInformationFormat = SimpleNamespace(JSON=1)
    PluginFieldType = SimpleNamespace(FLOAT32=1, INT32=2)
    TensorRTPhase = SimpleNamespace(BUILD=0, RUNTIME=1)
    DataType = SimpleNamespace(FLOAT="FLOAT", HALF="HALF", BF16="BF16")
    IPluginV3 = type("IPluginV3", (), {})
    IPluginV3OneCore = type("IPluginV3OneCore", (), {})
    IPluginV3OneBuild = type("IPluginV3OneBuild", (), {})
    IPluginV3OneRuntime = type("IPluginV3OneRuntime", (), {})
    IPluginCreatorV3One = type("IPluginCreatorV3One", (), {})
    IProfiler = type("IProfiler", (), {})
    PluginField = staticmethod(lambda *values: SimpleNamespace(values=values))
    PluginFieldCollection = staticmethod(list)

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

    def __init__(self) -> None:
        super().__init__("tensorrt")
        self.__spec__ = ModuleSpec("tensorrt", None)
        self.registered: list[Any] = []

    def get_plugin_registry(self) -> Any:
        return SimpleNamespace(
            register_creator=lambda creator, namespace: self.registered.append(creator) or True,
            deregister_creator=self.registered.remove,
        )

    def Builder(self, logger: Any) -> Any:
        return SimpleNamespace(
            create_network=lambda flags: SimpleNamespace(model=b""),
            create_builder_config=lambda: SimpleNamespace(clear_flag=lambda flag: None),
            build_serialized_network=lambda network, config: _checked(network.model, logger),
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        return SimpleNamespace(parse=lambda model: bool(setattr(network, "model", model) or model))

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda data: _Engine(bytes(data)))


def _session(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _checked(model: bytes, logger: Any) -> bytes | None:
    """The graph as an engine; None, with the reason logged, where ONNX Runtime has no kernels for its types."""
    try:
        _session(model)
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        logger.log(1, f"the dry run's double cannot run this graph: {error}")
        return None
    return model


class _Engine:
    def __init__(self, model: bytes) -> None:
        self.session = _session(model)
        self.image, self.logits = self.session.get_inputs()[0], self.session.get_outputs()[0]

    def get_tensor_name(self, index: int) -> str:
        return str((self.image, self.logits)[index].name)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple((self.image if name == "image" else self.logits).shape)

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name={"tensor(float)": "FLOAT", "tensor(float16)": "HALF"}[self.logits.type])

    def create_execution_context(self) -> _Context:
        return _Context(self)

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda form: '{"Layers": []}')


class _Context:
    profiler: Any = None

    def __init__(self, engine: _Engine) -> None:
        self.engine, self.addresses, self.shape = engine, {}, ()  # type: ignore[var-annotated]

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.engine.get_tensor_shape(name)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        kind = np.float16 if self.engine.image.type == "tensor(float16)" else np.float32
        batch = np.zeros(self.shape, kind)
        ctypes.memmove(batch.ctypes.data, self.addresses["image"], batch.nbytes)
        (logits,) = self.engine.session.run(None, {"image": batch})
        logits = np.ascontiguousarray(logits)
        ctypes.memmove(self.addresses["logits"], logits.ctypes.data, logits.nbytes)
        if self.profiler is not None:
            self.profiler.report_layer_time("all", 1.0)
        return True


@contextlib.contextmanager
def doubles(module: ModuleType, arguments: dict[str, Any]) -> Iterator[None]:
    """Let the body of a test of ``module``, whose fixtures are ``arguments``, run on the doubles."""
    if "target" in arguments:
        arguments["target"] = target = DryTarget(arguments["target"])
        target.launches = not module.__name__.endswith("test_gpu_kernels")
    torch.set_num_threads(1)  # of a process that has been forked
    with pytest.MonkeyPatch.context() as patch:
        use_cpu(patch)
        patch.setattr(torch.cuda, "graph", _no_graph)
        patch.setattr(gpu_stages, "measure_rates", partial(gpu_stages.measure_rates, device="cpu", sides=(64, 32)))
        patch.setattr(gpu_stages, "peers", _no_build)
        # ONNX Runtime's CPU kernels have no bfloat16.
        patch.setitem(engines.FLOATS, "bf16", engines.FLOATS["fp16"])
        patch.setattr(gpu_module, "_Driver", lambda library: None)
        patch.setattr(gpu_module, "_query", lambda driver, index: DRY_GPU)
        patch.setitem(sys.modules, "tensorrt", TensorRT())
        for name in ("build", "published"):  # minutes of export, and an engine that nothing here runs
            if name in vars(module):
                patch.setattr(module, name, _no_build)
        patch.setattr(export, "build", _no_build)
        yield


def _no_graph(graph: Any) -> Any:
    raise RuntimeError(_LEAVES.format("graphs to capture"))


def _no_build(*arguments: Any, **options: Any) -> Any:
    raise CannotRun(_LEAVES.format("engine of a whole network"))
