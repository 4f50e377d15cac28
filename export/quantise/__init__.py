"""Quantisation to eight bits: calibration, placement of Q/DQ, mixed precision.

inputs = calibration_inputs(folder, recipe.preprocess, recipe.default)
table = calibrate(proto, inputs, bundle_folder)
onnx_int8 = quantise(proto, table, "tensorrt")
"""

from isnet_trt.export.quantise.calibration import calibrate
from isnet_trt.export.quantise.evaluate import Agreement, Evaluate, MeanIoU, open_graph
from isnet_trt.export.quantise.formats import FLAVOURS, Flavour
from isnet_trt.export.quantise.inputs import CalibrationInputs, calibration_inputs
from isnet_trt.export.quantise.insert import quantise
from isnet_trt.export.quantise.placement import Layer, quantisable_layers
from isnet_trt.export.quantise.qdq_emulation import emulate_qdq
from isnet_trt.export.quantise.sensitivity import Mix, find_mix
from isnet_trt.export.quantise.table import Table

__all__ = [
    "FLAVOURS",
    "Agreement",
    "CalibrationInputs",
    "Evaluate",
    "Flavour",
    "Layer",
    "MeanIoU",
    "Mix",
    "Table",
    "calibrate",
    "calibration_inputs",
    "emulate_qdq",
    "find_mix",
    "open_graph",
    "quantisable_layers",
    "quantise",
]
