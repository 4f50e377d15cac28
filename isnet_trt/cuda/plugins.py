"""The two context operations as plugins of TensorRT and TensorRT-RTX: one Python class for both libraries.

The parser takes a plugin for a node of the domain ``isnet_trt`` that carries the attribute ``plugin_namespace``, if its
creator is registered; `kernels_for` registers both creators while an engine is built or deserialised, and only then,
and gives the plugins their kernels. ``enqueue`` queues the kernels of `isnet_trt.cuda.context_ops` on the stream that
the engine names; once these are captured in a CUDA graph, a run takes no Python.

No exception may leave a callback: its message is stored (`Host.failures`), and the callback returns the value that the
library treats as a failure. Types and shapes are refused while the graph is read, where the library stops cleanly.
TensorRT-RTX 1.7 ends the process when ``configure_plugin`` or ``supports_format_combination`` refuse: they never do.

API: https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/Plugin/IPluginV3.html
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isnet_trt.cuda.context_ops import NAMESPACE, OPERATIONS, VERSION, Attention, Pool
from isnet_trt.cuda.element_types import ELEMENT_TYPES, FLOATS
from isnet_trt.cuda.protocols import Launcher
from isnet_trt.errors import BuildError, EngineError, IsnetError

_log = logging.getLogger(__name__)
_lock = threading.RLock()
"""The registry of plugins is the process's: one engine at a time is built or deserialised with plugins."""
OperationType = type[Pool] | type[Attention]
LAYOUT = 2
"""Of the serialised fields: 2 has the types in one number, 1 had them in an array; engines of others are refused.

The bindings of TensorRT 10.6 and 10.15 know NumPy 1 only: with NumPy 2 they return a field of several numbers as so
many copies of the first.
"""


@dataclass
class Host:
    """The environment of plugins: kernels (None where an engine is built for another machine), and the GPU's size.

    ``failures`` collects the messages of errors inside callbacks.
    """

    kernels: Launcher | None = None
    multiprocessors: int = 1
    failures: list[str] = field(default_factory=list)

    def note(self, error: BaseException) -> str:
        """Store and log an error that a callback must not raise; return its message."""
        message = str(error) if isinstance(error, IsnetError) else f"{type(error).__name__}: {error}"
        self.failures.append(message)
        _log.error("context plugin: %s", message)
        return message


_host = Host()


@contextlib.contextmanager
def kernels_for(library: Any, kernels: Launcher | None = None, multiprocessors: int = 1) -> Iterator[Host]:
    """While this is open, engines that ``library`` (tensorrt or tensorrt_rtx) builds or deserialises have the plugins.

    ``kernels`` are what they launch and must stay loaded as long as the engine lives; without them an engine can be
    built, but not deserialised. Other threads wait here. Where the library refuses, `Host.failures` says why.

    Raises:
        BuildError: the library's registry refuses the plugins, such as where somebody else registered theirs.
    """
    global _host
    with _lock:
        # Creators are made once per library, so they find the host of the open engine in this variable.
        before, _host = _host, Host(kernels, multiprocessors)
        registry = library.get_plugin_registry()
        registered = []
        try:
            for creator in _creators(library):
                if not registry.register_creator(creator, NAMESPACE):
                    raise BuildError(f"{library.__name__} has another plugin {creator.name} in namespace {NAMESPACE}")
                registered.append(creator)
            yield _host
        finally:
            # Only what was registered here, also after a refusal half-way: never somebody else's creator.
            for creator in registered:
                registry.deregister_creator(creator)
            _host = before


def _guarded(failed: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A callback that notes its exceptions and then returns ``failed``."""

    def wrap(callback: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(callback)
        def guarded(self: Any, *arguments: Any) -> Any:
            try:
                return callback(self, *arguments)
            except Exception as error:
                self.host.note(error)
                return failed

        return guarded

    return wrap


def _kinds(library: Any) -> dict[Any, str]:
    """The library's types -> ours."""
    return {getattr(library.DataType, ELEMENT_TYPES[name].tensorrt): name for name in FLOATS}


class _Callbacks:
    """One node of an engine. Callbacks are called by the library; their meaning is that of its documentation.

    `plugin_class` puts this before the library's interfaces.
    """

    library: Any
    interfaces: tuple[Any, ...]

    def __init__(self, operation: OperationType, node: str, attributes: Mapping[str, float], host: Host) -> None:
        for interface in self.interfaces:
            # Each base by itself: the classes of pybind11 do not call super().__init__.
            interface.__init__(self)
        self.plugin_name = operation.name
        self.plugin_version = VERSION
        self.plugin_namespace = NAMESPACE
        self.num_outputs = len(operation.outputs)
        self.operation = operation
        self.node = node
        self.attributes = dict(attributes)
        self.host = host
        self.inputs: tuple[str, ...] = ()
        self._fields: list[Any] = []

    def clone(self) -> Any:
        copy = type(self)(self.operation, self.node, self.attributes, self.host)
        # The types were given to this object, and the clone may be the one that is serialised.
        copy.inputs = self.inputs
        return copy

    # The interface wants an object of its own for each execution context.
    def attach_to_context(self, context: Any) -> Any:
        return self.clone()

    def get_capability_interface(self, kind: Any) -> Any:
        # One class implements the capabilities core, build and runtime.
        return self

    @_guarded([])  # fewer types than outputs: the library refuses the node
    def get_output_data_types(self, inputs: Sequence[Any]) -> list[Any]:
        kinds = _kinds(self.library)
        self.inputs = tuple(kinds.get(kind, str(kind).removeprefix("DataType.").lower()) for kind in inputs)
        letters = self.operation.types(self.node, self.inputs)
        codes = {name: kind for kind, name in kinds.items()}
        return [codes[letters.get(tensor.type, tensor.type)] for tensor in self.operation.outputs.values()]

    @_guarded([])
    def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], expressions: Any) -> list[Any]:
        # Sizes that vary from run to run are expressions: they are compared when the kernels are queued.
        shapes = [[shape[axis] for axis in range(len(shape))] for shape in inputs]
        sizes = [[int(x.get_constant_value()) if x.is_constant() else None for x in shape] for shape in shapes]
        self.operation.sizes(self.node, sizes)
        axes: dict[str, Any] = {}
        for tensor, shape in zip(self.operation.inputs.values(), shapes, strict=True):
            axes |= zip(tensor.axes, shape, strict=True)
        outputs = []
        for tensor in self.operation.outputs.values():
            shape = self.library.DimsExprs(len(tensor.axes))
            for axis, letter in enumerate(tensor.axes):
                shape[axis] = axes[letter]
            outputs.append(shape)
        return outputs

    def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        return None  # an exception here would end the process

    on_shape_change = configure_plugin

    def supports_format_combination(self, index: int, tensors: Sequence[Any], inputs: int) -> bool:
        # The network is strongly typed: types were settled when the graph was read.
        return bool(tensors[index].desc.format == self.library.TensorFormat.LINEAR)

    # There is nothing to choose: tiles are constants of the compiled kernels.
    def get_valid_tactics(self) -> list[int]:
        return []

    def set_tactic(self, tactic: int) -> None:
        return None

    @_guarded(0)
    def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        # For the largest shapes of the profile: smaller ones take no more (`Operation.workspace`).
        return self._size([tensor.desc for tensor in inputs], [tuple(tensor.max) for tensor in inputs]).workspace()

    @_guarded(None)
    def get_fields_to_serialize(self) -> Any:
        numbers = {"layout": LAYOUT, "types": sum(FLOATS.index(kind) << 4 * i for i, kind in enumerate(self.inputs))}
        kinds = self.library.PluginFieldType
        fields = [(name, np.array([value], np.int32), kinds.INT32) for name, value in numbers.items()]
        fields += [(name, np.array([value], np.float32), kinds.FLOAT32) for name, value in self.attributes.items()]
        self._fields = fields  # the library keeps only the addresses of the arrays
        return self.library.PluginFieldCollection([self.library.PluginField(*field) for field in fields])

    def enqueue(
        self,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        sources: Sequence[int],
        results: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        """Queue the kernels. Here an exception is the library's own way: it catches it and fails the inference."""
        try:
            kernels, operation = self.host.kernels, self.operation
            if kernels is None:
                raise EngineError(f"node {self.node}: {operation.name} was given no kernels")
            size = self._size(inputs, [tuple(tensor.dims) for tensor in inputs])
            addresses = zip((*operation.inputs, *operation.outputs), (*sources, *results), strict=True)
            arguments: dict[str, Any] = {**dict(addresses), **self.attributes, "workspace": workspace}
            size.launch(kernels, stream, self.host.multiprocessors, **arguments)
        except Exception as error:
            raise RuntimeError(self.host.note(error)) from None

    def _size(self, tensors: Sequence[Any], shapes: Sequence[Sequence[int]]) -> Pool | Attention:
        kinds = _kinds(self.library)
        letters = self.operation.types(self.node, [kinds[tensor.type] for tensor in tensors])
        return self.operation.of(self.operation.static_sizes(self.node, shapes), letters)


@functools.cache
def plugin_class(library: Any) -> Any:
    """The plugin's class: a subclass of the interfaces of ``library`` (tensorrt or tensorrt_rtx)."""
    bases = (library.IPluginV3, library.IPluginV3OneCore, library.IPluginV3OneBuild, library.IPluginV3OneRuntime)
    return type("ContextPlugin", (_Callbacks, *bases), {"library": library, "interfaces": bases})


@functools.cache
def _creators(library: Any) -> tuple[Any, ...]:
    """One creator for each operation; never freed, since the library stores their addresses."""

    class Creator(library.IPluginCreatorV3One):
        def __init__(self, operation: OperationType) -> None:
            library.IPluginCreatorV3One.__init__(self)
            self.operation = operation
            self.name = operation.name
            self.plugin_version = VERSION
            self.plugin_namespace = NAMESPACE
            names = operation.attributes
            fields = [library.PluginField(n, np.array([]), library.PluginFieldType.FLOAT32) for n in names]
            self.field_names = library.PluginFieldCollection(fields)

        def create_plugin(self, node: str, fields: Any, phase: Any) -> Any:
            try:
                return _create(library, self.operation, node, fields, phase == library.TensorRTPhase.RUNTIME)
            except Exception as error:
                _host.note(error)
                return None

    return tuple(map(Creator, OPERATIONS))


def _create(library: Any, operation: OperationType, node: str, fields: Any, runtime: bool) -> Any:
    values = {field.name: np.asarray(field.data).ravel() for field in fields}
    if missing := [name for name in operation.attributes if not len(values.get(name, ()))]:
        raise BuildError(f"node {node}: {operation.name} lacks the attribute {', '.join(missing)}")
    attributes = {name: float(values[name][0]) for name in operation.attributes}
    plugin = plugin_class(library)(operation, node, attributes, _host)
    # While a graph is parsed, nothing has been serialised: the types come with the inputs later.
    if not runtime:
        return plugin
    layout = int(values["layout"][0]) if len(values.get("layout", ())) else 0
    codes = [int(code) for code in values.get("types", ())]
    if layout == LAYOUT and len(codes) == 1:
        codes = [codes[0] >> 4 * i & 15 for i in range(len(operation.inputs))]
    if layout not in (1, LAYOUT) or len(codes) != len(operation.inputs) or max(codes) >= len(FLOATS):
        raise EngineError(f"node {node}: the engine was built with another version of the plugin {operation.name}")
    if _host.kernels is None:
        raise EngineError(f"node {node}: {operation.name} is a plugin, and no kernels were given; open the bundle")
    plugin.inputs = tuple(FLOATS[code] for code in codes)
    return plugin
