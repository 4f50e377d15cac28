"""The two context operations as ONNX functions of the domain ``isnet_trt``.

A graph holds the operations as nodes of this domain *with* a function body of standard operators: an engine with a
plugin of that name uses the plugin, any other runs the body.

    RegionPool(logits (B, K, N) L, features (B, N, C) T) -> centres (B, K, C) T, log_counts (B, K) float32
    ContextAttention<scale>(q (B, N, D) T, k (B, M, D) T, v (B, M, D) T, bias (B, M) float32) -> out (B, N, D) T

L and T are float32, float16 or bfloat16. Softmaxes, class counts and their logarithms are float32 whatever L and T are:
the masked softmax's filler -3e38 overflows float16, and bfloat16 rounds log 900 and log 950 to one number.
"""

from __future__ import annotations

from typing import Literal

import onnx
from onnx import FunctionProto, ModelProto, helper, parser

DOMAIN = "isnet_trt"
DOMAIN_VERSION = 1
OPSET = 20
BLOCK = 512
"""Queries per block of the blocked attention: BLOCK x M scores exist at a time instead of N x M.

Measured with ONNX Runtime on two cores, D = 256: 3 % slower than the plain body at N = M = 4096, 20 % faster at 16384.
"""

AttentionBody = Literal["plain", "blocked"]
_HEADER = f'<opset_import: ["" : {OPSET}], domain: "{DOMAIN}">\n'

# Each position belongs to the class with the largest logit (ArgMax: the first of equals). The softmax of a class runs
# over its own positions: the scores of others are replaced by a number so low that exp underflows to 0, yet finite, so
# that a class without positions is not NaN; the product with the mask then makes it 0, and log(0) = -inf marks it.
_REGION_POOL = (
    _HEADER
    + """
RegionPool (logits, features) => (centres, log_counts) {
    scores = Cast <to: int = 1> (logits)
    winner = ArgMax <axis: int = 1, keepdims: int = 1> (scores)
    one = Constant <value_int: int = 1> ()
    zero = Constant <value_int: int = 0> ()
    shape = Shape <start: int = 1, end: int = 2> (logits)
    classes = Squeeze (shape)
    range = Range (zero, classes, one)
    axes = Constant <value_ints: ints = [0, 2]> ()
    column = Unsqueeze (range, axes)
    mask = Equal (winner, column)
    lowest = Constant <value_float: float = -3.0e38> ()
    own = Where (mask, scores, lowest)
    shares = Softmax <axis: int = 2> (own)
    ones = Cast <to: int = 1> (mask)
    products = Mul (shares, ones)
    weights = CastLike (products, features)
    centres = MatMul (weights, features)
    last = Constant <value_ints: ints = [2]> ()
    counts = ReduceSum <keepdims: int = 0> (ones, last)
    log_counts = Log (counts)
}"""
)

_PLAIN = (
    _HEADER
    + """
ContextAttention <scale> (q, k, v, bias) => (out) {
    factor = Constant <value_float: float = @scale> ()
    like = CastLike (factor, q)
    scaled = Mul (q, like)
    turned = Transpose <perm: ints = [0, 2, 1]> (k)
    products = MatMul (scaled, turned)
    axis = Constant <value_ints: ints = [1]> ()
    row = Unsqueeze (bias, axis)
    exact = Cast <to: int = 1> (products)
    scores = Add (exact, row)
    shares = Softmax <axis: int = 2> (scores)
    weights = CastLike (shares, v)
    out = MatMul (weights, v)
}"""
)

# The same with queries padded to whole blocks and a Scan over the blocks, so that B x N x M scores never exist at once.
# float32 inside: the types of a Scan's body are fixed, and a CPU has no faster arithmetic.
_BLOCKED = (
    _HEADER
    + f"""
ContextAttention <scale> (q, k, v, bias) => (out) {{
    factor = Constant <value_float: float = @scale> ()
    queries = Cast <to: int = 1> (q)
    scaled = Mul (queries, factor)
    keys = Cast <to: int = 1> (k)
    turned = Transpose <perm: ints = [0, 2, 1]> (keys)
    contents = Cast <to: int = 1> (v)
    axis = Constant <value_ints: ints = [1]> ()
    row = Unsqueeze (bias, axis)
    length = Shape <start: int = 1, end: int = 2> (q)
    most = Constant <value_ints: ints = [{BLOCK}]> ()
    block = Min (length, most)
    one = Constant <value_ints: ints = [1]> ()
    rounding = Sub (block, one)
    padded = Add (length, rounding)
    blocks = Div (padded, block)
    whole = Mul (blocks, block)
    missing = Sub (whole, length)
    zeros = Constant <value_ints: ints = [0, 0, 0, 0]> ()
    nothing = Constant <value_ints: ints = [0]> ()
    pads = Concat <axis: int = 0> (zeros, missing, nothing)
    filled = Pad (scaled, pads)
    batch = Shape <start: int = 0, end: int = 1> (q)
    width = Shape <start: int = 2, end: int = 3> (q)
    split = Concat <axis: int = 0> (batch, blocks, block, width)
    grouped = Reshape (filled, split)
    queue = Transpose <perm: ints = [1, 0, 2, 3]> (grouped)
    answers = Scan <num_scan_inputs: int = 1, body: graph = each (float[b, n, d] some) => (float[b, n, e] answer) {{
        products = MatMul (some, turned)
        scores = Add (products, row)
        weights = Softmax <axis: int = 2> (scores)
        answer = MatMul (weights, contents)
    }}> (queue)
    ordered = Transpose <perm: ints = [1, 0, 2, 3]> (answers)
    values = Shape <start: int = 2, end: int = 3> (v)
    joined = Concat <axis: int = 0> (batch, whole, values)
    flat = Reshape (ordered, joined)
    exact = Slice (flat, nothing, length, axis)
    out = CastLike (exact, q)
}}"""
)


def region_pool() -> FunctionProto:
    """The body of ``RegionPool``."""
    return _parsed(_REGION_POOL)


def attention(body: AttentionBody = "blocked") -> FunctionProto:
    """The body of ``ContextAttention``: ``blocked`` for ONNX Runtime (bounded memory), ``plain`` for TensorRT.

    TensorRT can fuse the plain body, and its parser refuses a Scan inside a function.
    """
    return _parsed(_PLAIN if body == "plain" else _BLOCKED)


def _parsed(text: str) -> FunctionProto:
    function = parser.parse_function(text)
    for number, node in enumerate(function.node):
        # TensorRT names a nameless node after its output: twice the same where a function is called twice.
        node.name = f"{function.name}_{number}_{node.op_type}"
    return function


def attach(model: ModelProto, body: AttentionBody = "blocked") -> None:
    """Add or replace the bodies of the isnet_trt nodes of ``model``, and set their plugin namespace, in place.

    A graph without such nodes stays as it is: its opset may be another than that of the bodies.
    TensorRT's parser from 10.7 on prefers a plugin to the body where the node has the attribute ``plugin_namespace``.
    """
    remove_bodies(model)  # `with_attention` exchanges the body of a graph that already has one
    if not context_nodes(model):
        return
    model.functions.extend([region_pool(), attention(body)])
    if all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
    for node in context_nodes(model):
        if all(attribute.name != "plugin_namespace" for attribute in node.attribute):
            node.attribute.append(helper.make_attribute("plugin_namespace", DOMAIN))


def context_nodes(model: ModelProto) -> list[onnx.NodeProto]:
    """The nodes of the domain isnet_trt."""
    return [node for node in model.graph.node if node.domain == DOMAIN]


def remove_plugin_namespace(model: ModelProto) -> None:
    """Remove the plugin namespace of the nodes, in place: a parser then uses the bodies, not registered plugins."""
    for node in context_nodes(model):
        kept = [attribute for attribute in node.attribute if attribute.name != "plugin_namespace"]
        del node.attribute[:]
        node.attribute.extend(kept)


def remove_bodies(model: ModelProto) -> None:
    """Remove the bodies of the isnet_trt nodes, in place: a parser then takes a plugin or refuses the node.

    TensorRT's parser up to 10.6 prefers a body to a plugin, whatever the node says (its release notes to 10.7).
    """
    kept = [function for function in model.functions if function.domain != DOMAIN]
    del model.functions[:]
    model.functions.extend(kept)
