"""Eight-bit graphs: calibration, placement, and what it costs.

inputs = calibration_inputs(folder, recipe.preprocess, recipe.default)
table = calibrate(proto, inputs, bundle_folder)
onnx_int8 = quantise(proto, table, "tensorrt")
"""

from isnet_trt.export.quantise.calibration import calibrate
from isnet_trt.export.quantise.formats import FLAVOURS, Flavour
from isnet_trt.export.quantise.inputs import CalibrationInputs, calibration_inputs
from isnet_trt.export.quantise.insert import quantise
from isnet_trt.export.quantise.placement import Layer, layers
from isnet_trt.export.quantise.table import Table

__all__ = [
    "FLAVOURS",
    "CalibrationInputs",
    "Flavour",
    "Layer",
    "Table",
    "calibrate",
    "calibration_inputs",
    "layers",
    "quantise",
]
