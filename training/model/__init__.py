"""ISNet in PyTorch: `ISNet` for training and evaluation, `inference_form` for export.

Paper: Jin et al., "ISNet: Integrate Image-Level and Semantic-Level Context for Semantic Segmentation", ICCV 2021.
"""

from isnet_trt.training.model.inference import InferenceISNet, inference_form
from isnet_trt.training.model.isnet import ISNet, Outputs

__all__ = ["ISNet", "InferenceISNet", "Outputs", "inference_form"]
