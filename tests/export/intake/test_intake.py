"""Any segmentation network taken in: what is found, what the graph becomes, and what is refused with its remedy."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from foreign_networks import CLASSES, ENCODER, HEAD, RESIZED, network, resized
from onnx import numpy_helper

from isnet_trt.errors import BuildError, SettingsError
from isnet_trt.export.intake.enlargement import enlarged
from isnet_trt.export.intake.graph import Intake, take_in
from isnet_trt.export.intake.probe import rms_difference
from isnet_trt.export.precision import cast_to_half
from isnet_trt.export.sessions import open_session
from isnet_trt.settings import Preprocess

PREPROCESS = Preprocess((512, 512))
LOW = HEAD.replace("y =", "low =")
PADDED = "pads: ints = [1, 1, 1, 1]"


def taken(proto: onnx.ModelProto, *ports: str | None, classes: int = CLASSES) -> Intake:
    return take_in(proto, PREPROCESS, classes, "model.onnx", (*ports, None, None)[:2])


def outputs(proto: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    with open_session(proto) as session:
        return session.run(None, {session.get_inputs()[0].name: pixels})[0]


def picture(height: int = 96, width: int = 160) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((1, 3, height, width)).astype(np.float32)


def test_a_plain_network() -> None:
    intake = taken(network())
    probed, graph = intake.probed, intake.proto.graph
    assert (probed.classes, probed.stride, probed.multiple, probed.size, probed.batch) == (CLASSES, 4, 1, None, None)
    assert [value.name for value in (*graph.input, *graph.output)] == ["image", "logits"]
    assert intake.activation == "none"
    assert len({node.name for node in graph.node}) == len(graph.node)
    assert all(node.name for node in graph.node)
    np.testing.assert_allclose(outputs(intake.proto, picture(77, 105)), outputs(network(), picture(77, 105)), atol=1e-5)


@pytest.mark.parametrize("opset", [11, 13, 17, 20, 21])
def test_the_opset_is_raised_and_the_graph_stays_valid(opset: int) -> None:
    intake = taken(network(opset=opset))
    assert next(entry.version for entry in intake.proto.opset_import if entry.domain == "") == max(opset, 20)
    onnx.checker.check_model(intake.proto, full_check=True)
    assert any("raised" in note for note in intake.probed.notes) == (opset < 20)


def test_weights_among_the_inputs_of_an_old_file() -> None:
    """IR version 3 demands it."""
    proto = network(opset=9)
    proto.ir_version = 3
    for tensor in proto.graph.initializer:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    assert any("raised" in note for note in taken(proto).probed.notes)


@pytest.mark.parametrize("opset", [17, 20])
def test_weights_that_an_exporter_numbered(opset: int) -> None:
    """Only the new graph has other names: the reference still finds its weights, and the file's graph is left alone."""
    proto = network(opset=opset)
    for tensor in proto.graph.initializer:
        tensor.name = f"onnx::Conv_{tensor.name}"
    for node in proto.graph.node:
        node.input[1:] = [f"onnx::Conv_{name}" for name in node.input[1:]]
    before = proto.SerializeToString(deterministic=True)
    intake = taken(proto)
    np.testing.assert_array_equal(outputs(intake.reference, picture()), outputs(network(), picture()))
    assert proto.SerializeToString(deterministic=True) == before


def test_probabilities_near_zero_differ_by_rounding_only() -> None:
    """What ONNX Runtime gave for a text detector on a photograph without text: alone, and in a batch of two."""
    alone = np.float32([0, 2**-24, 2**-22, 5 * 2**-24]).repeat(1000)
    assert rms_difference(alone + np.float32(2**-24), alone) < 1e-3
    assert rms_difference(alone + np.float32(1e-6), alone) > 1e-3
    assert rms_difference(alone * 1e6 * 1.01, alone * 1e6) > 1e-3


def test_operators_of_another_domain_keep_their_version() -> None:
    """Raising the opset leaves them as they are, and the graph computes the same."""
    body = LOW + "    y = com.microsoft.Gelu (low)\n"
    intake = taken(network(body, opset=17, domains=', "com.microsoft": 1'))
    assert next(entry.version for entry in intake.proto.opset_import if entry.domain == "") == 20
    np.testing.assert_allclose(outputs(intake.proto, picture()), outputs(intake.reference, picture()), atol=1e-5)


def test_identities_and_constants_in_front_of_weights() -> None:
    body = HEAD.replace("(x, w1, b1)", "(x, i2, j1)").replace("(r, w2, b2)", "(r, w2, fixed)")
    first = "    i1 = Identity (w1)\n    i2 = Identity (i1)\n    j1 = Identity (b1)\n"
    values = ", ".join(["0.25"] * 16)
    first += f"    fixed = Constant <value_floats: floats = [{values}]> ()\n"
    intake = taken(network(first + body))
    stored = {tensor.name for tensor in intake.proto.graph.initializer}
    assert {node.op_type for node in intake.proto.graph.node} == {"Conv", "Relu"}
    for node in intake.proto.graph.node:
        assert set(node.input[1:]) <= stored


def test_names_of_input_and_output_that_are_taken() -> None:
    """A tensor inside the graph that has one of our names gets another."""
    body = HEAD.replace("r = Relu (a)", "logits = Relu (a)").replace("(r,", "(logits,")
    body = body.replace("    s = Relu", "    image = Relu")
    intake = taken(network(body.replace("(s,", "(image,")))
    np.testing.assert_allclose(outputs(intake.proto, picture()), outputs(network(), picture()), atol=1e-5)


@pytest.mark.parametrize("mode", ["half_pixel", "pytorch_half_pixel", "align_corners"])
def test_the_last_resize_is_left_to_the_merge(mode: str) -> None:
    intake = taken(resized(mode))
    kind = "align_corners" if mode == "align_corners" else "half_pixel"
    assert (intake.enlargement, intake.probed.stride) == (kind, 4)
    assert "Resize" not in {node.op_type for node in intake.proto.graph.node}
    low, high = outputs(intake.proto, picture(77, 105)), outputs(intake.reference, picture(77, 105))
    assert high.shape[2:] == (77, 105)
    np.testing.assert_allclose(enlarged(low, (77, 105), kind), high, atol=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["asymmetric", "tf_crop_and_resize"])
def test_a_resize_of_another_kind_stays(mode: str) -> None:
    body = RESIZED.format(mode=mode)
    if mode == "tf_crop_and_resize":
        body = body.replace("(low, ,", "(low, roi,")
    intake = taken(network(LOW + body, roi=np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32)))
    assert (intake.enlargement, intake.probed.stride) == (None, 1)


def test_a_resize_by_less_than_the_stride_stays() -> None:
    """The merge would enlarge by 4 in one step where the network does it in two."""
    half = LOW + '    y = Resize <mode: string = "linear"> (low, , scales)\n'
    intake = taken(network(half, scales=np.array([1, 1, 2, 2], np.float32)))
    assert (intake.enlargement, intake.probed.stride) == (None, 2)


def test_a_resize_by_a_factor_that_reaches_the_size_for_multiples_only() -> None:
    """97 pixels become 25 positions and 100 pixels: only multiples of 4 have an output of their own size."""
    whole = LOW + '    y = Resize <mode: string = "linear"> (low, , scales)\n'
    intake = taken(network(whole, scales=np.array([1, 1, 4, 4], np.float32)))
    assert (intake.enlargement, intake.probed.stride, intake.probed.multiple) == ("half_pixel", 4, 4)


def patches(side: int, body: str = "", **options: object) -> onnx.ModelProto:
    """A network of patches: of a side that they do not divide it leaves out the rest."""
    weight = np.random.default_rng(5).standard_normal((CLASSES, 3, side, side)).astype(np.float32)
    body = f"    low = Conv <strides: ints = [{side}, {side}]> (x, patch)\n" + (body or "    y = Identity (low)\n")
    return network(body, patch=weight, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("side", [4, 14])
def test_patches(side: int) -> None:
    probed = taken(patches(side)).probed
    assert (probed.stride, probed.multiple) == (side, side)


def test_the_last_resize_of_sides_that_patches_do_not_divide() -> None:
    """Of 211 pixels the network reads 208 and enlarges to 211; padded to 212 it would give other scores."""
    proto = patches(4, RESIZED.format(mode="half_pixel"))
    intake = taken(proto)
    assert (intake.enlargement, intake.probed.stride, intake.probed.multiple) == (None, 1, 1)
    assert any("size_multiple: 4" in note for note in intake.probed.notes)
    padded = take_in(proto, PREPROCESS, CLASSES, "model.onnx", size_multiple=12)
    assert (padded.enlargement, padded.probed.stride, padded.probed.multiple) == ("half_pixel", 4, 4)


@pytest.mark.parametrize("opset", [9, 10])
def test_an_enlargement_of_an_old_opset(opset: int) -> None:
    """Upsample and the first Resize have no half-pixel positions, which became the default."""
    operator = "Upsample" if opset == 9 else "Resize"
    body = LOW + f'    y = {operator} <mode: string = "linear"> (low, scales)\n'
    proto = network(body, opset=opset, scales=np.array([1, 1, 4, 4], np.float32))
    intake = taken(proto)
    assert intake.enlargement is None
    assert any("raised" in note for note in intake.probed.notes)
    np.testing.assert_allclose(outputs(intake.proto, picture()), outputs(proto, picture()), atol=1e-5)


@pytest.mark.parametrize(("operator", "activation"), [("Softmax <axis: int = 1>", "softmax"), ("Sigmoid", "sigmoid")])
def test_an_activation_in_the_graph(operator: str, activation: str) -> None:
    assert taken(network(LOW + f"    y = {operator} (low)\n")).activation == activation
    behind = LOW + RESIZED.format(mode="half_pixel").replace("y =", "wide =") + f"    y = {operator} (wide)\n"
    intake = taken(network(behind))
    assert (intake.activation, intake.enlargement, intake.probed.stride) == (activation, None, 1)
    before = LOW + f"    soft = {operator} (low)\n" + RESIZED.format(mode="half_pixel").replace("low", "soft")
    intake = taken(network(before))
    assert (intake.activation, intake.enlargement, intake.probed.stride) == (activation, "half_pixel", 4)


ACTIVATIONS = {
    "softmax, channels last": (
        "softmax",
        "    t = Transpose <perm: ints = [0, 2, 3, 1]> (low)\n    u = Softmax <axis: int = 3> (t)\n"
        "    y = Transpose <perm: ints = [0, 3, 1, 2]> (u)\n",
    ),
    "softmax, by its parts": (
        "softmax",
        "    e = Exp (low)\n    sum = ReduceSum (e, axes)\n    y = Div (e, sum)\n",
    ),
    "sigmoid, enlarged": (
        "sigmoid",
        '    p = Sigmoid (low)\n    y = Resize <mode: string = "nearest"> (p, , scales)\n',
    ),
    "softmax over the rows": ("none", "    y = Softmax <axis: int = 2> (low)\n"),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_that_is_not_the_last_node(name: str) -> None:
    activation, body = ACTIVATIONS[name]
    scales, axes = np.array([1, 1, 4, 4], np.float32), np.array([1])
    assert taken(network(LOW + body, scales=scales, axes=axes)).activation == activation


def test_sizes_that_must_be_multiples() -> None:
    """A skip connection: an addition of two grids that are equal for even sides only."""
    body = (
        ENCODER
        + "    up = Resize (s, , scales)\n    both = Concat <axis: int = 1> (up, r)\n    y = Conv (both, w3, b3)\n"
    )
    scales, wide = np.array([1, 1, 2, 2], np.float32), np.ones((CLASSES, 24, 1, 1), np.float32)
    intake = taken(network(body, scales=scales, w3=wide))
    assert (intake.probed.stride, intake.probed.multiple) == (2, 4)


def test_a_fixed_size_and_a_fixed_batch() -> None:
    intake = taken(network(inputs="float[1, 3, 64, 96] x"))
    assert (intake.probed.size, intake.probed.batch) == ((64, 96), 1)
    dims = [dim.dim_value for dim in intake.proto.graph.input[0].type.tensor_type.shape.dim]
    assert dims == [1, 3, 64, 96]


@pytest.mark.parametrize("size", [(97, 99), (65, 129)])
def test_a_fixed_size_that_the_stride_does_not_divide(size: tuple[int, int]) -> None:
    body = (
        LOW + "    y = MaxPool <kernel_shape: ints = [9, 9], strides: ints = [8, 8], pads: ints = [4, 4, 4, 4]> (low)\n"
    )
    probed = taken(network(body, inputs=f"float[1, 3, {size[0]}, {size[1]}] x")).probed
    assert (probed.stride, probed.size) == (32, size)


def test_a_batch_that_is_free_in_name_only() -> None:
    body = LOW + "    y = Reshape (low, shape)\n"
    proto = network(body, inputs="float[batch, 3, 64, 96] x", shape=np.array([1, CLASSES, 16, 24]))
    assert taken(proto).probed.batch == 1


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("end", ["Sigmoid", "Identity"])
def test_a_network_of_four_images_at_once(free: bool, end: str) -> None:
    """Where the graph itself has the number inside, the image is repeated."""
    shape = np.array([0 if free else 4, CLASSES, 16, 24])
    body = LOW + f"    same = Reshape (low, shape)\n    y = {end} (same)\n"
    proto = network(body, inputs="float[4, 3, 64, 96] x", shape=shape)
    intake = taken(proto)
    assert intake.probed.batch == (None if free else 1)
    assert intake.activation == ("sigmoid" if end == "Sigmoid" else "none")
    assert any(("left free" if free else "repeated 4 times") in note for note in intake.probed.notes)
    pictures = np.concatenate([picture(64, 96) + k for k in range(4)])
    expected = outputs(proto, pictures)
    for graph in (intake.proto, intake.reference):
        alone = np.concatenate([outputs(graph, image[None]) for image in pictures])
        np.testing.assert_allclose(alone, expected, atol=1e-5)


def test_four_images_that_depend_on_each_other_are_refused() -> None:
    body = LOW + "    mean = ReduceMean <axes: ints = [0], keepdims: int = 1> (low)\n    y = Sub (low, mean)\n"
    with pytest.raises(BuildError, match="depends on the other images of its batch"):
        taken(network(body, inputs="float[4, 3, 64, 96] x"))


def test_four_images_of_any_size() -> None:
    intake = taken(network(inputs="float[4, 3, height, width] x"))
    assert (intake.probed.size, intake.probed.batch) == (None, None)
    assert outputs(intake.proto, picture(77, 105)).shape == (1, CLASSES, 20, 27)


def test_four_images_of_a_network_that_ends_with_a_resize() -> None:
    assert taken(resized(inputs="float[4, 3, 64, 96] x")).enlargement == "half_pixel"


TWO = {"body": HEAD + "    z = Relu (y)\n", "outputs": "float[n, k, p, q] y, float[n, k, p, q] z"}


def test_one_of_several_outputs() -> None:
    with pytest.raises(SettingsError, match=r"2 outputs; name one with --output: y: float .*, z: float"):
        taken(network(**TWO))
    with pytest.raises(SettingsError, match="no tensor 'aux' for --output"):
        taken(network(**TWO), None, "aux")
    intake = taken(network(**TWO), None, "y")
    assert sum(node.op_type == "Relu" for node in intake.proto.graph.node) == 2


def test_one_of_several_inputs() -> None:
    inputs = "float[batch, 3, height, width] x, float[k] t"
    with pytest.raises(SettingsError, match="2 inputs; name one with --input: x: float"):
        taken(network(inputs=inputs))
    assert taken(network(inputs=inputs), "x").probed.stride == 4
    body = LOW + "    y = Mul (low, t)\n"
    with pytest.raises(BuildError, match="also needs the input t: float"):
        taken(network(body, inputs=inputs), "x")
    with pytest.raises(BuildError, match="does not depend on the input"):
        taken(network(HEAD + "    z = Relu (t)\n", inputs=inputs, outputs="float[k] z"), "x")


ARG_MAX = LOW + "    y = ArgMax <axis: int = 1, keepdims: int = 0> (low)\n"
LAST = LOW + "    y = Transpose <perm: ints = [0, 2, 3, 1]> (low)\n"
FIRST = "    x = Transpose <perm: ints = [0, 3, 1, 2]> (t)\n" + HEAD
CAST = "    x = Cast <to: int = 1> (t)\n" + HEAD
NOISE = LOW + "    noise = RandomNormalLike <scale: float = 0.3> (low)\n    y = Add (low, noise)\n"
MIXED = LOW + "    mean = ReduceMean <axes: ints = [0, 2, 3]> (low)\n    y = Sub (low, mean)\n"
REFUSED = {
    "arg max": (network(ARG_MAX, outputs="int64[n, p, q] y"), r"arg max \(ArgMax\).*--output 'low'"),
    "labels": (
        network(LOW + "    y = Cast <to: int = 7> (low)\n", outputs="int64[n, k, p, q] y"),
        "labels, not scores",
    ),
    "output channels last": (network(LAST), "channels last.*--output 'low'"),
    "input channels last": (network(FIRST, inputs="float[n, h, w, 3] t"), "channels last.*--input 'x'"),
    "integers": (network(CAST, inputs="uint8[n, 3, h, w] t"), "whole numbers.*--input 'x'"),
    "half": (network(CAST, inputs="float16[n, 3, h, w] t"), "not float32"),
    "double output": (
        network(LOW + "    y = Cast <to: int = 11> (low)\n", outputs="double[n, k, p, q] y"),
        "float64, not float32",
    ),
    "empty": (
        network(LOW + "    y = Slice (low, ends, ends, axes)\n", ends=np.array([0]), axes=np.array([2])),
        "map of",
    ),
    "channels": (network(inputs="float[n, 4, h, w] x", w1=np.ones((8, 4, 3, 3), np.float32)), "has 4 channels"),
    "rank": (network(LOW + "    y = ReduceMax <axes: ints = [1], keepdims: int = 0> (low)\n"), "map of scores"),
    "one side fixed": (network(inputs="float[n, 3, 64, w] x"), "fixes one side only"),
    "input rank": (network("    y = Relu (x)\n", inputs="float[n, m] x"), "no batch of images"),
    "operator": (network(LOW + "    y = mine.Thing (low)\n", domains=', "mine": 1'), "not ONNX's own: mine.Thing"),
    "random": (network(NOISE), "the network is random"),
    "batch": (network(MIXED), "depends on the other images of its batch"),
    "NaN": (network(LOW + "    y = Sqrt (low)\n"), "NaN or infinite"),
    "size of its own": (
        network(LOW + "    y = Resize (low, , , sizes)\n", sizes=np.array([1, CLASSES, 50, 70])),
        "no whole number of pixels",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_remedy(name: str) -> None:
    proto, message = REFUSED[name]
    with pytest.raises(BuildError, match=message):
        taken(proto)


@pytest.mark.parametrize(
    ("body", "inputs", "ports"),
    [
        (ARG_MAX, "float[n, 3, h, w] x", (None, "low")),
        (LAST, "float[n, 3, h, w] x", (None, "low")),
        (FIRST, "float[n, h, w, 3] t", ("x", None)),
        (CAST, "uint8[n, 3, h, w] t", ("x", None)),
    ],
)
def test_the_remedy_works(body: str, inputs: str, ports: tuple[str | None, str | None]) -> None:
    kind = "int64[n, p, q] y" if body is ARG_MAX else "float[n, k, p, q] y"
    intake = taken(network(body, inputs=inputs, outputs=kind), *ports)
    np.testing.assert_allclose(outputs(intake.proto, picture()), outputs(network(), picture()), atol=1e-5)


def test_a_graph_that_breaks_the_rules_of_onnx() -> None:
    proto = network()
    proto.graph.node[1].output[0] = proto.graph.node[0].output[0]
    with pytest.raises(BuildError, match=r"model.onnx is not a valid ONNX graph: .*redeclared"):
        taken(proto)


BRANCHES = """
    t = Constant <value_int: int = 1> ()
    choice = Cast <to: int = 9> (t)
    y = If (choice) <then_branch = one () => (float p) { p = Relu (low) }, else_branch = two () => (float q) {
        q = Abs (low)
    }>
"""


def test_control_flow_stays_float32() -> None:
    intake = taken(network(LOW + BRANCHES))
    np.testing.assert_allclose(outputs(intake.proto, picture()), outputs(intake.reference, picture()), atol=1e-5)
    with pytest.raises(BuildError, match=r"control flow \(If .*use --precision fp32"):
        cast_to_half(intake.proto, "fp16")


def test_the_recipe_and_the_network_contradict_each_other() -> None:
    with pytest.raises(SettingsError, match="5 classes, and the recipe describes 19"):
        taken(network(), classes=19)


def test_a_numbered_weight_is_named_after_its_node() -> None:
    proto = network()
    for node, name in zip(
        (n for n in proto.graph.node if n.op_type == "Conv"), ("/net/net.0/Conv", "", "/head/Conv"), strict=True
    ):
        node.name = name
    for number, tensor in enumerate(proto.graph.initializer):
        old, tensor.name = tensor.name, f"onnx::Conv_{number}"
        for node in proto.graph.node:
            node.input[:] = [tensor.name if name == old else name for name in node.input]
    names = {node.input[1] for node in taken(proto).proto.graph.node if node.op_type == "Conv"}
    assert {"net.0.weight", "head.weight"} < names
    assert not any("::" in name for name in names)
    assert numpy_helper.to_array(proto.graph.initializer[0]).shape == (8, 3, 3, 3)
