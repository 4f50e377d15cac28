"""The seconds of each block of a network under ONNX Runtime, each block being a model of its own.

A block is what lies between two borders. It is cut out of the graph, fed with the values that cross its border in a
real run, and timed alone: a difference of two longer runs would carry the noise of both.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper
from tqdm import tqdm

from benchmarks import cost
from isnet_trt.engines import onnxruntime_cpu as engine
from isnet_trt.settings import Size

Values = dict[str, NDArray[Any]]


def seconds(model: Path, ends: Sequence[str], size: Size, threads: int, rounds: int) -> tuple[list[float], float]:
    """Seconds of the blocks that end at the tensors ``ends``, and of the network as one, for an input (1, 3, *size).

    The least of all rounds each: a floor is compared with what the machine does when nothing disturbs it.
    """
    proto = cost.flat(model)
    x = np.random.default_rng(0).standard_normal((1, 3, *size), dtype=np.float32)
    values = _crossing(proto, ends, {proto.graph.input[0].name: x}, threads)
    parts = [*(_part(proto, ends, block, values) for block in range(len(ends))), proto]
    sessions = [_session(part, threads) for part in parts]
    feeds = [{entry.name: values[entry.name] for entry in session.get_inputs()} for session in sessions]
    for session, feed in zip(sessions, feeds, strict=True):
        session.run(None, feed)
    bar = tqdm(range(rounds), desc="blocks", unit="round", disable=None, leave=False)
    samples = [[_seconds(s, f) for s, f in zip(sessions, feeds, strict=True)] for _ in bar]
    *each, whole = np.min(samples, axis=0).tolist()
    return each, whole


def _crossing(proto: onnx.ModelProto, ends: Sequence[str], given: Values, threads: int) -> Values:
    """The value of every tensor that one block makes and another uses, and of the input."""
    inside = [_nodes(proto, ends, block) for block in range(len(ends))]
    made = [{name for node in nodes for name in node.output} for nodes in inside]
    used = [{name for node in nodes for name in node.input} for nodes in inside]
    names = sorted({name for m, u in zip(made, used, strict=True) for name in u - m if any(name in o for o in made)})
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    found = _session(probe, threads).run(names, given) if names else []
    return {**given, **dict(zip(names, found, strict=True))}


def _part(proto: onnx.ModelProto, ends: Sequence[str], block: int, values: Values) -> onnx.ModelProto:
    """A block as a model: its inputs are the values that it takes from elsewhere."""
    nodes = _nodes(proto, ends, block)
    made = {name for node in nodes for name in node.output}
    used = {name for node in nodes for name in node.input}
    # Not what nobody outside needs: a result that has to come out in float32 keeps its kernel from being quantised.
    outputs = sorted(made & set(values)) or [ends[block]]
    part = onnx.ModelProto()
    part.CopyFrom(proto)
    for held in (part.graph.node, part.graph.input, part.graph.output, part.graph.value_info):
        del held[:]
    part.graph.node.extend(nodes)
    part.graph.input.extend(_described(name, values[name]) for name in sorted((used - made) & set(values)))
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    weights = [weight for weight in part.graph.initializer if weight.name in used]
    del part.graph.initializer[:]
    part.graph.initializer.extend(weights)
    return part


def _described(name: str, value: NDArray[Any]) -> onnx.ValueInfoProto:
    """Number of dimensions only: sizes are free, as they are in the whole graph."""
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)


def _nodes(proto: onnx.ModelProto, ends: Sequence[str], block: int) -> list[NodeProto]:
    """The nodes of a block and, whoever owns them, constants and dequantisations that they use.

    Those become part of the kernels behind them; cut off, they would leave slower ones.
    """
    owned = cost.owners(proto, ends)
    shared = _constant(proto) | {i for i, node in enumerate(proto.graph.node) if node.op_type == "DequantizeLinear"}
    producers = {name: i for i, node in enumerate(proto.graph.node) for name in node.output}
    chosen: set[int] = set()
    waiting = [i for i, owner in owned.items() if owner == block and i not in shared]
    while waiting:
        number = waiting.pop()
        chosen.add(number)
        sources = {producers[name] for name in proto.graph.node[number].input if name in producers}
        waiting += [i for i in sources if i in shared and i not in chosen]
    return [proto.graph.node[i] for i in sorted(chosen)]


def _constant(proto: onnx.ModelProto) -> set[int]:
    """Numbers of the nodes whose values do not depend on the input."""
    known = {weight.name for weight in proto.graph.initializer} | {""}
    found = set()
    for i, node in enumerate(proto.graph.node):  # in topological order
        if all(name in known for name in node.input):
            found.add(i)
            known.update(node.output)
    return found


def _session(proto: onnx.ModelProto, threads: int) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(
        proto.SerializeToString(), engine.session_options(onnxruntime, threads), providers=["CPUExecutionProvider"]
    )


def _seconds(session: Any, feed: Values) -> float:
    start = time.perf_counter()
    session.run(None, feed)
    return time.perf_counter() - start
