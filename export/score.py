"""mIoU of an engine and of its checkpoint on labelled pictures, through one runtime."""

from __future__ import annotations

from isnet_trt.bundle import CheckpointInfo
from isnet_trt.engines.base import Engine
from isnet_trt.errors import SettingsError
from isnet_trt.evaluation.labelled import Labelled
from isnet_trt.evaluation.models import Model
from isnet_trt.evaluation.run import run
from isnet_trt.export.report import Scores
from isnet_trt.runtime.segmenter import Segmenter
from isnet_trt.training.checkpoint import Checkpoint
from isnet_trt.training.model import ISNet
from isnet_trt.training.torch_engine import TorchEngine


def score(model: ISNet, engine: Engine, checkpoint: Checkpoint, pictures: Labelled, preset: str = "default") -> Scores:
    """Score both with a preset of the checkpoint's recipe; ``engine`` stays open.

    Raises:
        SettingsError: no picture could be used.
        DataError, ImageError, EngineError: a picture cannot be read, or an engine failed.
    """
    models = [_model(runner, checkpoint, preset) for runner in (TorchEngine(model, "cpu"), engine)]
    tally = run(models, pictures, range(len(pictures)))
    if tally.agreement is None or not tally.pictures:
        raise SettingsError(f"{pictures.name} has no pictures to score on")
    of_checkpoint, of_engine = (score.confusion.metrics() for score in tally.scores)
    about = f"{tally.pictures} pictures of {pictures.name} ({pictures.split}), {preset}"
    return Scores(about, of_checkpoint, of_engine, tally.agreement.all_pixels)


def _model(engine: Engine, checkpoint: Checkpoint, preset: str) -> Model:
    recipe = checkpoint.recipe
    inference = recipe.preset(preset)
    stride = recipe.architecture.output_stride
    segmenter = Segmenter(engine, recipe.labels, recipe.preprocess, inference, stride)
    source = CheckpointInfo(checkpoint.path.name, checkpoint.sha256)
    return Model(str(checkpoint.path), "checkpoint", recipe.name, source, preset, inference, segmenter)
