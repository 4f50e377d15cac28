"""Winograd F(4×4, 3×3) for the wide 3×3 convolutions of a graph, in standard operators, for ONNX Runtime on a CPU.

A 4×4 block of outputs costs 36 products per pair of channels instead of 144 (Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks", 2016, section 4, with the points 0, ±1, ±2, ∞):

    Y = Aᵀ [(G W Gᵀ) ⊙ (Bᵀ X B)] A

Bᵀ X B is a 6×6 convolution of stride 4 on single channels, the sums over channels are one 1×1 convolution of 36 groups,
Aᵀ M A is a 4×4 transposed convolution of stride 4. The file keeps the 3×3 weights W; ONNX Runtime folds G W Gᵀ, which
has four times the size of W, when it loads the graph.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, parser

from isnet_trt.export.functions import OPSET
from isnet_trt.export.onnx_edit import copied, opset_of

DOMAIN = "isnet_trt.cpu"
NAME = "WinogradConv"
CHANNELS = 256
"""Fewest input and output channels for which the rewriting is faster at every image size.

ONNX Runtime 1.32, two cores with AVX-512, against the direct convolution on 64×64 positions: 2.2 times as fast with
1024 or 2048 input channels (1.3 on 8×11 positions), 1.35 with 256, 0.97 with 128. Dilated convolutions, phase by phase,
are slower on small images (0.5 on 33×42 positions with dilation 4) and stay as they are.
"""

_OLDEST = 15
"""The first ONNX opset whose Shape takes a part of the shape."""

_B = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_A = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
# The product at the points (1, 1) enters every output of its block with factor 1: adding the bias there adds it to all.
_BIAS_AT = np.arange(36) == 7

_SHARED = """
    rest = Constant <value_ints: ints = [-1]> ()
    one = Constant <value_ints: ints = [1]> ()
    points = Constant <value_ints: ints = [36]> ()"""
_WEIGHTS = """
    kernel = Constant <value_floats: floats = [{kernel}]> ()
    kernel_shape = Constant <value_ints: ints = [36, 9]> ()
    outputs = Shape <start: int = 0, end: int = 1> (weight)
    inputs = Shape <start: int = 1, end: int = 2> (weight)
    taps_shape = Constant <value_ints: ints = [-1, 9]> ()
    taps = Reshape (weight, taps_shape)
    by_tap = Transpose <perm: ints = [1, 0]> (taps)
    to_points = Reshape (kernel, kernel_shape)
    transformed = MatMul (to_points, by_tap)
    kernels_shape = Concat <axis: int = 0> (rest, inputs, one, one)
    kernels = Reshape (transformed, kernels_shape)
    carrier = Constant <value_floats: floats = [{carrier}]> ()
    column = Unsqueeze (carrier, one)
    carried = Mul (column, bias)
    biases = Reshape (carried, rest)"""
_FORWARD = """
    size = Shape <start: int = 2, end: int = 4> (x)
    three = Constant <value_ints: ints = [3]> ()
    four = Constant <value_ints: ints = [4]> ()
    reach = Add (size, three)
    tiles = Div (reach, four)
    whole = Mul (tiles, four)
    missing = Sub (whole, size)
    after = Add (missing, one)
    before = Constant <value_ints: ints = [0, 0, 1, 1, 0, 0]> ()
    pads = Concat <axis: int = 0> (before, after)
    padded = Pad (x, pads)
    halo_size = Shape <start: int = 2, end: int = 4> (padded)
    single_shape = Concat <axis: int = 0> (rest, one, halo_size)
    single = Reshape (padded, single_shape)
    forward_taps = Constant <value_floats: floats = [{forward}]> ()
    forward_shape = Constant <value_ints: ints = [36, 1, 6, 6]> ()
    forward = Reshape (forward_taps, forward_shape)
    seen = Conv <strides: ints = [4, 4]> (single, forward)
    batch = Shape <start: int = 0, end: int = 1> (x)
    seen_shape = Concat <axis: int = 0> (batch, inputs, points, rest)
    by_channel = Reshape (seen, seen_shape)
    by_point = Transpose <perm: ints = [0, 2, 1, 3]> (by_channel)
    grouped_shape = Concat <axis: int = 0> (batch, rest, tiles)
    grouped = Reshape (by_point, grouped_shape)"""
_BACK = """
    products = Conv <group: int = 36> (grouped, kernels, biases)
    products_shape = Concat <axis: int = 0> (batch, points, outputs, rest)
    per_point = Reshape (products, products_shape)
    per_channel = Transpose <perm: ints = [0, 2, 1, 3]> (per_point)
    blocks_shape = Concat <axis: int = 0> (rest, points, tiles)
    blocks = Reshape (per_channel, blocks_shape)
    back_taps = Constant <value_floats: floats = [{back}]> ()
    back_shape = Constant <value_ints: ints = [36, 1, 4, 4]> ()
    back = Reshape (back_taps, back_shape)
    enlarged = ConvTranspose <strides: ints = [4, 4]> (blocks, back)
    joined_shape = Concat <axis: int = 0> (batch, outputs, whole)
    joined = Reshape (enlarged, joined_shape)
    origin = Constant <value_ints: ints = [0, 0]> ()
    spatial = Constant <value_ints: ints = [2, 3]> ()
    y = Slice (joined, origin, size, spatial)"""


def winograd_conv(opset: int = OPSET) -> FunctionProto:
    """``WinogradConv(x (B, C, H, W), weight (K, C, 3, 3), bias (K,)) -> (B, K, H, W)``: stride 1, padding 1.

    ``opset`` is that of the graph: ONNX wants one version of an operator in a graph and its functions.
    """
    header = f'<opset_import: ["" : {opset}], domain: "{DOMAIN}">\n{NAME} (x, weight, bias) => (y) {{'
    body = (_SHARED + _WEIGHTS + _FORWARD + _BACK).format(
        kernel=_numbers(np.kron(_G, _G)),
        carrier=_numbers(_BIAS_AT),
        forward=_numbers(np.kron(_B, _B)),
        back=_numbers(np.kron(_A, _A).T),
    )
    return parser.parse_function(header + body + "\n}")


def _numbers(values: NDArray) -> str:
    return ", ".join(repr(float(value)) for value in values.ravel())


def rewrite(model: ModelProto) -> ModelProto:
    """A copy of ``model`` whose wide 3×3 convolutions are ``WinogradConv`` nodes.

    Operators of the function have their present inputs since opset `_OLDEST`: an older graph stays as it is.
    """
    copy, opset = copied(model), opset_of(model)
    if opset < _OLDEST:
        return copy
    floats = (tensor for tensor in copy.graph.initializer if tensor.data_type == TensorProto.FLOAT)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in floats}
    replaced = [node for node in copy.graph.node if _is_wide(node, shapes)]
    for node in replaced:
        node.op_type, node.domain = NAME, DOMAIN
        # Stride, padding and kernel size are fixed in the function's body.
        del node.attribute[:]
    if replaced:
        copy.functions.append(winograd_conv(opset))
        copy.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return copy


def _is_wide(node: NodeProto, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether ``node`` is a wide 3×3 convolution with bias, stride 1, padding 1, neither dilated nor grouped."""
    if node.op_type != "Conv" or node.domain or len(node.input) != 3:
        return False
    # A weight that is no float32 initializer has no known shape: its node stays a convolution.
    outputs, inputs, *kernel = shapes.get(node.input[1], (0, 0))
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return (
        kernel == [3, 3]
        and min(outputs, inputs) >= CHANNELS
        and attributes.get("group", 1) == 1
        and list(attributes.get("pads", [])) == [1, 1, 1, 1]
        and all(list(attributes.get(name, [1, 1])) == [1, 1] for name in ("strides", "dilations"))
    )
