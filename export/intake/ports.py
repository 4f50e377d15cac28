"""The one input and the one output of a network: chosen by name, everything that neither needs removed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import onnx_ir as ir
from onnx_ir.passes import common as passes

from isnet_trt.errors import BuildError, SettingsError, first_few

PASS_ON = ("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape", "Transpose")
"""Operators that change the form of an output, not its values."""
_TO_FIRST, _TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
"""Permutations of (B, H, W, C) to channels first, and of (B, C, H, W) to channels last."""
_INTEGERS = tuple(type_ for type_ in ir.DataType if type_.is_integer() or type_ == ir.DataType.BOOL)


def select_ports(model: ir.Model, source: str, input_name: str | None = None, output_name: str | None = None) -> None:
    """Leave ``model`` with one input and one output, in place.

    ``input_name`` and ``output_name`` may be any tensor of the graph: what lies in front of the one and behind the
    other is removed. ``source`` names the file in messages.

    Raises:
        SettingsError: there are several and none was named, or there is none of that name; the message lists them.
        BuildError: the output needs another input, or one of them cannot be used; the message has the remedy.
    """
    passes.RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version or 0, 4)  # earlier ones demand that initializers are inputs
    graph = model.graph
    if {input_name, output_name} - {value.name for value in (*graph.inputs, *graph.outputs)} - {None}:
        passes.ShapeInferencePass()(model)  # an input needs a type
    entry = _chosen(graph, graph.inputs, input_name, "--input", source)
    end = _chosen(graph, graph.outputs, output_name, "--output", source)
    if entry is end:
        raise SettingsError(f"{source}: {entry.name} is both input and output; name two tensors")
    if entry.producer() is not None:
        entry = _severed(entry)
    _check_input(entry, source)
    _check_output(end, source)
    others = [value for value in graph.inputs if value is not entry]
    graph.inputs[:] = [entry, *others]
    graph.outputs[:] = [end]
    passes.RemoveUnusedNodesPass()(model)
    if not entry.uses():
        raise BuildError(f"{source}: output {end.name} does not depend on the input {entry.name}; name another")
    if needed := [value for value in others if value.uses()]:
        raise BuildError(
            f"{source}: output {end.name} also needs the input {_listed(needed)}; export the network with images as "
            "its only input, or name a tensor behind it with --input"
        )
    graph.inputs[:] = [entry]


def _chosen(graph: ir.Graph, offered: Sequence[ir.Value], name: str | None, option: str, source: str) -> ir.Value:
    if name is None:
        if len(offered) == 1:
            return offered[0]
        side = option.removeprefix("--")
        raise SettingsError(f"{source} has {len(offered)} {side}s; name one with {option}: {_listed(offered)}")
    named = next((value for value in (*offered, *_values(graph)) if value.name == name), None)
    if named is None:
        raise SettingsError(f"{source} has no tensor {name!r} for {option}; there is: {_listed(offered)}")
    return named


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _listed(values: Iterable[ir.Value]) -> str:
    return first_few([_text(value) for value in values], 20)


def _text(value: ir.Value) -> str:
    kind = value.dtype.name.lower() if value.dtype is not None else "unknown type"
    sizes = "unknown shape" if value.shape is None else f"({', '.join(str(size) for size in value.shape)})"
    return f"{value.name}: {kind} {sizes}"


def _severed(value: ir.Value) -> ir.Value:
    """A graph input that takes the place of an inner tensor and has its name."""
    entry = ir.Value(name=value.name, shape=value.shape, type=value.type)
    ir.convenience.replace_all_uses_with(value, entry)
    value.name = f"{value.name}::before"
    return entry


def _check_input(value: ir.Value, source: str) -> None:
    """Refuse what cannot take float32 images (B, 3, H, W); unknown types and shapes pass, since they are run later."""
    if value.dtype in _INTEGERS:
        raise BuildError(
            f"{source}: input {_text(value)} takes whole numbers, the runtime gives normalised float32; "
            + _behind(value, ("Cast",), "export the network without the conversion in front of it")
        )
    if value.dtype not in (None, ir.DataType.FLOAT):
        raise BuildError(
            f"{source}: input {_text(value)} is not float32; export the network in float32 and let --precision fp16 "
            "or bf16 convert it"
        )
    if value.shape is None:
        return
    sizes = [size if isinstance(size, int) else None for size in value.shape]
    if len(sizes) != 4:
        raise BuildError(
            f"{source}: input {_text(value)} is no batch of images (B, 3, H, W); name another with --input"
        )
    if sizes[3] == 3 and sizes[1] != 3:
        remedy = "export it channels first (tf2onnx: --inputs-as-nchw)"
        raise BuildError(
            f"{source}: input {_text(value)} has its channels last, the runtime gives (B, 3, H, W); "
            + _behind(value, ("Transpose",), remedy)
        )
    if sizes[1] not in (None, 3):
        raise BuildError(
            f"{source}: input {_text(value)} has {sizes[1]} channels; the runtime gives images of 3 channels, so the "
            "network has to be exported with 3"
        )
    if (sizes[2] is None) != (sizes[3] is None):
        raise BuildError(
            f"{source}: input {_text(value)} fixes one side only; export the network with height and width both free, "
            "or both fixed"
        )


def _behind(value: ir.Value, operators: tuple[str, ...], otherwise: str) -> str:
    """The remedy for an input that one node converts: name the tensor behind it."""
    consumers = [use.node for use in value.uses()]
    if len(consumers) == 1 and consumers[0].op_type in operators:
        return f"name the tensor behind the conversion: --input {consumers[0].outputs[0].name!r}"
    return otherwise


def _check_output(value: ir.Value, source: str) -> None:
    """Refuse an arg max and channels last; what else an output may be wrong in shows when it is run."""
    producer = value.producer()
    while producer is not None and producer.op_type in PASS_ON:
        permutation = producer.attributes.get_ints("perm", ()) if producer.op_type == "Transpose" else ()
        if tuple(permutation) == _TO_LAST:
            raise BuildError(
                f"{source}: output {_text(value)} has its channels last, the runtime takes (B, classes, h, w); name "
                f"the tensor in front of the conversion: --output {_name(producer.inputs[0])}"
            )
        first = producer.inputs[0]
        producer = first.producer() if first is not None else None
    if producer is not None and producer.op_type in ("ArgMax", "TopK"):
        raise BuildError(
            f"{source}: output {_text(value)} holds labels: the arg max ({producer.op_type}) is inside the graph, "
            "where scales, flips and windows can no longer be averaged; name the tensor in front of it: "
            f"--output {_name(producer.inputs[0])}"
        )


def _name(value: ir.Value | None) -> str:
    return repr(value.name if value is not None else "")
