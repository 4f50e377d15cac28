"""From the ONNX graph of any segmentation network to the float32 graph that the lowering starts from."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from isnet_trt.errors import BuildError, IsnetError, TimeLimitExceeded, first_few
from isnet_trt.export.graph import INPUT, OUTPUT
from isnet_trt.export.intake import batch as fixed_batch
from isnet_trt.export.intake.enlargement import Enlargement, enlarged, last_resize, without_last_resize
from isnet_trt.export.intake.normal_form import normalise, raised
from isnet_trt.export.intake.ports import PASS_ON, select_ports
from isnet_trt.export.intake.probe import (
    MIXED,
    Pixels,
    Probed,
    Prober,
    Run,
    odd_multiples,
    probe,
    rms_difference,
)
from isnet_trt.export.network_inputs import built_in
from isnet_trt.export.onnx_edit import copied
from isnet_trt.export.sessions import open_session
from isnet_trt.settings import Activation, Preprocess, Size

_SAME = 1e-4
"""Largest rms difference, in standard deviations, between a network and its graph cut in front of the last Resize."""


@dataclass(frozen=True)
class Intake:
    """A network that was taken in.

    Attributes:
        proto: the graph for the lowering: input ``image``, output ``logits``, both float32 (B, C, H, W).
        reference: the network as it was given, with the one input and output that were chosen.
        probed: what was found of ``proto``.
        activation: what the graph itself applies to its scores.
        enlargement: the kind of the last Resize that was cut off; None: there was none, or it stays.
        reference_stride: input pixels per position of the output of ``reference``.
        sample: that output for the built-in image.
    """

    proto: onnx.ModelProto
    reference: onnx.ModelProto
    probed: Probed
    activation: Activation
    enlargement: Enlargement | None
    reference_stride: int
    sample: NDArray[np.float32]


def take_in(
    proto: onnx.ModelProto,
    preprocess: Preprocess,
    classes: int,
    source: str,
    ports: tuple[str | None, str | None] = (None, None),
    size_multiple: int = 1,
) -> Intake:
    """Choose input and output, examine the network, and bring its graph to the form of our own exports.

    ``classes`` is the number of classes of the recipe, ``source`` the network's name in messages, ``ports`` the names
    of input and output where there are several, ``size_multiple`` what the recipe pads sides to.

    Raises:
        SettingsError: a name is missing or unknown, or the recipe contradicts the network.
        BuildError: the network cannot be used; the message says why and what to do.
    """
    with _invalid(source):
        model = ir.serde.deserialize_model(proto)
    select_ports(model, source, *ports)
    model, batch_note = _one_image(model, built_in(preprocess), classes, source)
    reference = ir.serde.serialize_model(model)
    converted, note = raised(reference)
    with _invalid(source):
        model = ir.serde.deserialize_model(copied(converted))  # weights are shared: a new name would be the reference's
        normalise(model)
    size, batch = _fixed(model.graph.inputs[0])
    with opened(reference, source) as run:
        network = Prober(run, built_in(preprocess), classes, source, size, batch)
        probed, sample = probe(network)
        reference_stride = probed.stride
        model, probed, kind = _without_enlargement(model, probed, network, size_multiple)
    probed = dataclasses.replace(probed, notes=(*filter(None, (batch_note, *probed.notes, note)),))
    _declare(model, probed)
    activation: Activation = "none"
    if _ends_with_sigmoid(model.graph):
        activation = "sigmoid"
    elif are_probabilities(sample, "softmax"):
        activation = "softmax"
    return Intake(ir.serde.serialize_model(model), reference, probed, activation, kind, reference_stride, sample)


def _ends_with_sigmoid(graph: ir.Graph) -> bool:
    """Whether the output is that of a sigmoid, perhaps moved or resampled: values stay probabilities."""
    node = fixed_batch.last_node(graph)
    while node is not None and node.op_type in (*PASS_ON, "Resize") and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "Sigmoid"


def are_probabilities(scores: NDArray[np.float32], activation: str) -> bool:
    """Whether ``scores`` (B, K, h, w) may come from ``activation``, softmax or sigmoid."""
    inside = scores.min() >= 0 and scores.max() <= 1
    return bool(inside and (activation != "softmax" or np.allclose(scores.sum(1), 1, atol=1e-3)))


@contextlib.contextmanager
def _invalid(source: str) -> Iterator[None]:
    """Re-raise what onnx_ir raises for a graph that breaks ONNX's rules as BuildError with its first cause."""
    try:
        yield
    except IsnetError:
        raise
    except Exception as error:  # it wraps exceptions of many types in its own
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = " ".join(str(cause).split())[:300]
        raise BuildError(f"{source} is not a valid ONNX graph: {reason}; export the network again") from None


@contextlib.contextmanager
def opened(proto: onnx.ModelProto, source: str) -> Iterator[Run]:
    """A graph of one input and one output under ONNX Runtime, as it is: without any optimisation.

    Raises:
        BuildError: ONNX Runtime cannot load it, for want of an operator say.
    """
    with contextlib.ExitStack() as stack:
        try:
            session = stack.enter_context(open_session(proto, optimised=False))
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
            raise BuildError(_unloadable(proto, source, error)) from None
        name = session.get_inputs()[0].name

        def run(pixels: Pixels) -> NDArray:
            try:
                return session.run(None, {name: pixels})[0]
            except TimeLimitExceeded as error:
                raise TimeLimitExceeded(f"{source}: {error}") from None

        yield run


def _unloadable(proto: onnx.ModelProto, source: str, error: Exception) -> str:
    functions = {(function.domain, function.name) for function in proto.functions}
    unknown = {
        f"{node.domain or 'ai.onnx'}.{node.op_type}"
        for node in proto.graph.node
        if (node.domain, node.op_type) not in functions and not onnx.defs.has(node.op_type, node.domain)
    }
    text = f"ONNX Runtime cannot load {source}: {' '.join(str(error).split())[:300]}"
    if unknown:
        text += f"; operators that are not ONNX's own: {first_few(sorted(unknown))}"
    return f"{text}; export the network with standard operators of ONNX"


def _fixed(value: ir.Value) -> tuple[Size | None, int | None]:
    """The size and the batch that an input declares to be fixed."""
    if value.shape is None or len(value.shape) != 4:
        return None, None
    batch, _, height, width = (size if isinstance(size, int) else None for size in value.shape)
    return (height, width) if height and width else None, batch


def _one_image(model: ir.Model, picture: Callable[[Size], Pixels], classes: int, source: str) -> tuple[ir.Model, str]:
    """``model`` for any number of images or for one, where its input is fixed to several; and a note."""
    size, count = _fixed(model.graph.inputs[0])
    if count is None or count < 2:
        return model, ""
    with opened(ir.serde.serialize_model(model), source) as run:
        given = Prober(lambda image: run(np.repeat(image, count, axis=0)), picture, classes, source, size)
        size, repeated = given.first_run()
        if len(repeated) != count:
            raise BuildError(
                f"{source}: the output for {count} images is {repeated.shape}; export it so that only the first size "
                "depends on the number of images"
            )
        given.check_values(size, repeated)
        images = given.pictures(size, count)
        outputs = run(images)
    given.check_independent(outputs, repeated[:1])
    free = fixed_batch.freed(model)
    if _runs_alone(free, images, outputs, source):
        return free, f"batch       declared as {count}, but images are independent: it is left free"
    note = f"batch       {count} images inside the graph: each is repeated {count} times, at {count} times the cost"
    return fixed_batch.repeating(model, count), f"{note}; export it with a free number of images"


def _runs_alone(free: ir.Model, images: Pixels, outputs: NDArray, source: str) -> bool:
    """Whether ``free`` gives the ``outputs`` of ``images`` also for one and for two images at a time."""
    try:
        with opened(ir.serde.serialize_model(free), source) as run:
            results = [(run(images[start:stop]), outputs[start:stop]) for start, stop in ((0, 1), (1, 2), (0, 2))]
    except TimeLimitExceeded:
        raise
    except Exception:  # of whatever type: the number is inside the graph
        return False
    return all(one.shape == given.shape and rms_difference(one, given) <= MIXED for one, given in results)


def _without_enlargement(
    model: ir.Model, probed: Probed, network: Prober, size_multiple: int
) -> tuple[ir.Model, Probed, Enlargement | None]:
    """``model`` without its last Resize where the merge can do it, what is then true of it, and the kind.

    Inputs are padded to multiples of ``size_multiple`` and of what ``model`` demands.
    """
    resize = last_resize(model)
    if resize is None or probed.stride > 1:
        return model, probed, None
    kind = resize[1]
    cut = without_last_resize(model)
    with opened(ir.serde.serialize_model(cut), network.source) as run:
        small = dataclasses.replace(network, call=run)
        stride, multiple = small.grid(*small.first_run())
        size, high = network.first_run()
        same = rms_difference(enlarged(small.run(size), size, kind), high) <= _SAME
        if not network.size:
            size = odd_multiples(math.lcm(probed.multiple, multiple))
            same = same and rms_difference(enlarged(small.run(size), size, kind), network.run(size)) <= _SAME
    reason = ""
    if not same:
        reason = "the merge would give other scores"
    elif math.lcm(probed.multiple, size_multiple) % multiple:
        # Of 211 pixels it may read 208, and enlarge the output for them to 211.
        reason = f"without it only sides divisible by {multiple} fit; the recipe may say size_multiple: {multiple}"
    if reason:
        note = f"resize      the last Resize stays in the graph: {reason}"
        return model, dataclasses.replace(probed, notes=(*probed.notes, note)), None
    # Where the network enlarges by a factor, its output for other sides has not their size.
    multiple = math.lcm(probed.multiple, multiple)
    corners = " (corners aligned)" if kind == "align_corners" else ""
    note = f"resize      the last Resize, by {stride}{corners}, is left to the merge"
    return cut, dataclasses.replace(probed, stride=stride, multiple=multiple, notes=(*probed.notes, note)), kind


def _declare(model: ir.Model, probed: Probed) -> None:
    """State the shapes of input and output; forget those of inner tensors, which may be of one size only."""
    batch, size = probed.batch or "batch", probed.size or ("height", "width")
    grid = ("rows", "columns") if probed.size is None else tuple(-(-side // probed.stride) for side in probed.size)
    for value in itertools.chain(model.graph.inputs, *(node.outputs for node in model.graph.all_nodes())):
        value.shape = None
    model.graph.inputs[0].shape = ir.Shape([batch, 3, *size])
    model.graph.outputs[0].shape = ir.Shape([batch, probed.classes, *grid])
    for value, name in ((model.graph.inputs[0], INPUT), (model.graph.outputs[0], OUTPUT)):
        assert value.name == name
        value.dtype = ir.DataType.FLOAT
