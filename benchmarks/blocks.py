"""The blocks of a network, from its ONNX graph: what each must compute and move at least, and its seconds alone.

A block is what lies between two borders that the graph names. Operations are those of convolutions, matrix products and
the two context operations (a multiply-add counts 2); elementwise work is not counted. Bytes are the weights of a block
and the tensors that cross its border, once each: what has to move if everything inside the block stayed in cache.

For its seconds a block is cut out as a model of its own, fed with the values that cross its border in a run, and timed
alone: a difference of two longer runs would carry the noise of both.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Container, Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.inliner
import onnx.utils
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from benchmarks.peers.networks import open_session
from isnet_trt import timing
from isnet_trt.errors import SettingsError
from isnet_trt.export.functions import DOMAIN
from isnet_trt.export.graph import block_outputs
from isnet_trt.export.onnx_edit import attribute, copied, element_types
from isnet_trt.settings import Size

TAIL = "decoder_stage2"
"""The block behind the last named border."""
_POOL, _ATTENTION = (DOMAIN, "RegionPool"), (DOMAIN, "ContextAttention")
_WEIGHT_AT = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}
"""Convolution -> which of its inputs is the weight."""
_PRODUCTS = ("MatMul", "MatMulInteger", "Gemm", "QLinearMatMul")
Shapes = dict[str, tuple[int, ...]]
Values = dict[str, NDArray[Any]]


class Block(NamedTuple):
    """Part of the network between two borders: operations and least bytes."""

    name: str
    operations: float
    bytes: float


class Network:
    """A network, cut at its borders, for inputs (1, 3, *size).

    ``names`` and ``ends``: each block's name and the tensor that ends it, in order of computation; ``owner``: the block
    of each node, by their numbers; nodes that no output needs have none.

    Raises:
        SettingsError: ONNX Runtime cannot run the graph at that size.
    """

    def __init__(self, proto: onnx.ModelProto, size: Size) -> None:
        self.proto = proto
        if self.proto.functions:  # all but the two context operations in line
            opaque = [(f.domain, f.name) for f in self.proto.functions if (f.domain, f.name) in (_POOL, _ATTENTION)]
            self.proto = onnx.inliner.inline_selected_functions(self.proto, opaque, exclude=True)
        self.nodes = list(self.proto.graph.node)
        self.quantised = any(node.op_type == "QuantizeLinear" for node in self.nodes)
        self._input = self.proto.graph.input[0].name
        self._x = np.random.default_rng(0).standard_normal((1, 3, *size), dtype=np.float32)
        self._producers = {name: i for i, node in enumerate(self.nodes) for name in node.output}
        self._shapes = self._run_shapes()
        named = {name: tensor for name, tensor in block_outputs(self.proto).items() if tensor in self._shapes}
        self.names, self.ends = [*named, TAIL], [*named.values(), self.proto.graph.output[0].name]
        self.owner = self._owners()
        self._constants = self._constant_tensors()

    def _run_shapes(self) -> Shapes:
        """The shape of every tensor, as a run gives it: exact also where sizes are free and inference gives up."""
        names = [name for node in self.nodes for name in node.output if name]
        probe = copied(self.proto)
        probe.graph.node.extend(helper.make_node("Shape", [name], [f"shape of {name}"]) for name in names)
        del probe.graph.output[:]
        probe.graph.output.extend(
            helper.make_tensor_value_info(f"shape of {name}", TensorProto.INT64, None) for name in names
        )
        try:
            shapes = open_session(probe, threads=1).run(None, {self._input: self._x})
        # ONNX Runtime's exceptions have no common base class.
        except Exception as error:
            height, width = self._x.shape[2:]
            raise SettingsError(f"the graph cannot be run at {height}x{width}: {error}") from None
        constants = {weight.name: tuple(weight.dims) for weight in self.proto.graph.initializer}
        computed = {name: tuple(map(int, shape)) for name, shape in zip(names, shapes, strict=True)}
        return computed | constants | {self._input: self._x.shape}

    def _owners(self) -> dict[int, int]:
        """Node number -> block number: what the end of a block needs and no earlier block had.

        A QuantizeLinear of the end belongs to it: an integer kernel puts out the quantised values.
        """
        owner: dict[int, int] = {}
        for block, end in enumerate(self.ends):
            for number in self._upstream(end, owner):
                owner[number] = block
            for number, node in enumerate(self.nodes):
                if node.op_type == "QuantizeLinear" and node.input[0] == end:
                    owner.setdefault(number, block)
        return owner

    def _upstream(self, tensor: str, seen: Container[int]) -> set[int]:
        """Numbers of the nodes that ``tensor`` needs, up to those ``seen`` before."""
        numbers: set[int] = set()
        waiting = [tensor]
        while waiting:
            name = waiting.pop()
            number = self._producers.get(name)
            if number is not None and number not in numbers and number not in seen:
                numbers.add(number)
                waiting += self.nodes[number].input
        return numbers

    def _constant_tensors(self) -> set[str]:
        """Names of the tensors whose values do not depend on the input."""
        constants = {weight.name for weight in self.proto.graph.initializer} | {""}
        for node in self.nodes:  # in topological order
            if constants.issuperset(node.input):
                constants.update(node.output)
        return constants

    def blocks(self) -> list[Block]:
        """Operations and least bytes of each block."""
        types = element_types(self.proto)
        sizes = {name: helper.tensor_dtype_to_np_dtype(kind).itemsize for name, kind in types.items() if kind}
        outputs = {output.name for output in self.proto.graph.output}
        blocks = []
        for block, name in enumerate(self.names):
            inside = [self.nodes[i] for i, owner in self.owner.items() if owner == block]
            outside = [self.nodes[i] for i, owner in self.owner.items() if owner != block]
            computed = {tensor for node in inside for tensor in node.output}
            used = {tensor for node in inside for tensor in node.input if tensor}
            needed = {tensor for node in outside for tensor in node.input} | outputs
            crossing = ((used - computed) | (computed & needed)) & self._shapes.keys()
            moved = sum(math.prod(self._shapes[tensor]) * sizes.get(tensor, 4) for tensor in crossing)
            blocks.append(Block(name, sum(operations(node, self._shapes) for node in inside), float(moved)))
        return blocks

    def seconds(self, threads: int, rounds: int) -> tuple[list[float], float]:
        """Seconds of each block and of the network as one: the least of interleaved rounds.

        A floor is compared with what the machine does when nothing disturbs it.
        """
        values = self.border_values(threads)
        sessions = [open_session(model, threads) for model in (*self.parts(values), self.proto)]
        feeds = [{entry.name: values[entry.name] for entry in session.get_inputs()} for session in sessions]
        runs = [functools.partial(session.run, None, feed) for session, feed in zip(sessions, feeds, strict=True)]
        # Thrown away: the first run of a session allocates its memory.
        for run in runs:
            run()
        timed = [functools.partial(timing.seconds, run) for run in runs]
        *each, whole = map(min, timing.interleaved(timed, range(rounds), "blocks"))
        return each, whole

    def _inputs(self, block: int) -> set[str]:
        """The tensors that a block takes from elsewhere.

        A dequantised tensor is taken before its DequantizeLinear: that becomes part of the kernels behind it; cut off,
        it would leave slower ones.
        """
        own = [self.nodes[i] for i, owner in self.owner.items() if owner == block]
        read = (name for node in own if node.op_type != "DequantizeLinear" for name in node.input)
        sources = {self._quantised_source(name) for name in read} - self._constants
        return {name for name in sources if self.owner.get(self._producers.get(name, -1)) != block}

    def _quantised_source(self, name: str) -> str:
        while (number := self._producers.get(name)) is not None and self.nodes[number].op_type == "DequantizeLinear":
            name = self.nodes[number].input[0]
        return name

    def border_values(self, threads: int) -> Values:
        """The value of the input and of every tensor that one block makes and another takes, in one run."""
        names = sorted(set().union(*map(self._inputs, range(len(self.ends)))) - {self._input})
        probe = copied(self.proto)
        probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        computed = open_session(probe, threads).run([*names, self.ends[-1]], {self._input: self._x})
        return {self._input: self._x} | dict(zip(names, computed, strict=False))

    def parts(self, values: Values) -> Iterator[onnx.ModelProto]:
        """Each block as a model, with inputs of the types and shapes of ``values``."""
        inputs = [self._inputs(block) for block in range(len(self.ends))]
        cutter = onnx.utils.Extractor(self.proto)
        # The cutter declares the inputs of a part from these; inference does not know all shapes.
        cutter.value_infos = {name: _described(name, values) for name in (*values, *self.ends)}
        for block, end in enumerate(self.ends):
            taken = set().union(*(names for other, names in enumerate(inputs) if other != block))
            # Not what nobody outside needs: a result that has to come out in float32 keeps its kernel from being
            # quantised.
            outputs = {name for name in taken if self.owner.get(self._producers.get(name, -1)) == block} or {end}
            yield cutter.extract_model(sorted(inputs[block]), sorted(outputs))


def _described(name: str, values: Values) -> onnx.ValueInfoProto:
    """A tensor's name, and its type and shape where its value is known."""
    if name not in values:
        return onnx.ValueInfoProto(name=name)
    value = values[name]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


def operations(node: NodeProto, shapes: Shapes) -> float:
    """Floating-point (or integer) operations of one node."""
    out = shapes.get(node.output[0], ())
    if node.op_type in _WEIGHT_AT:
        return 2.0 * math.prod(out) * math.prod(shapes[node.input[_WEIGHT_AT[node.op_type]]][1:])
    if node.op_type in _PRODUCTS:
        return 2.0 * math.prod(out) * shapes[node.input[0]][-2 if attribute(node, "transA", 0) else -1]
    if (node.domain, node.op_type) == _POOL:
        (batch, classes, positions), channels = shapes[node.input[0]], shapes[node.input[1]][-1]
        return 2.0 * batch * classes * positions * channels
    if (node.domain, node.op_type) == _ATTENTION:
        (batch, queries, width), (_, keys, values) = shapes[node.input[0]], shapes[node.input[2]]
        return 2.0 * batch * queries * keys * (width + values)
    return 0.0
