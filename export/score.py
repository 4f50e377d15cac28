"""mIoU of an engine and of its reference on labelled pictures, through one runtime."""

from __future__ import annotations

import dataclasses

from isnet_trt.engines.base import Engine
from isnet_trt.errors import SettingsError
from isnet_trt.evaluation.labelled import Labelled
from isnet_trt.evaluation.models import Model
from isnet_trt.evaluation.run import run
from isnet_trt.export.network import Network
from isnet_trt.export.report import Scores
from isnet_trt.runtime.segmenter import Segmenter
from isnet_trt.settings import NetworkFacts


def score(network: Network, engine: Engine, pictures: Labelled, preset: str = "default") -> Scores:
    """Score both with a preset of the network's recipe; ``engine`` stays open.

    Raises:
        SettingsError: no picture could be used.
        DataError, ImageError, EngineError: a picture cannot be read, or an engine failed.
    """
    whole = dataclasses.replace(network.recipe.network, upsampling="none")  # the reference enlarges its output itself
    facts = network.recipe.network if network.reference.stride == network.stride else whole
    models = [
        _model(network, network.reference, network.reference.stride, facts, preset),
        _model(network, engine, network.stride, network.recipe.network, preset),
    ]
    tally = run(models, pictures, range(len(pictures)))
    if tally.agreement is None or not tally.pictures:
        raise SettingsError(f"{pictures.name} has no pictures to score on")
    of_checkpoint, of_engine = (score.confusion.metrics() for score in tally.scores)
    about = f"{tally.pictures} pictures of {pictures.name} ({pictures.split}), {preset}"
    return Scores(about, of_checkpoint, of_engine, tally.agreement.all_pixels)


def _model(network: Network, engine: Engine, stride: int, facts: NetworkFacts, preset: str) -> Model:
    recipe = network.recipe
    inference = recipe.preset(preset)
    segmenter = Segmenter(engine, recipe.labels, recipe.preprocess, inference, stride, network=facts)
    return Model(network.path, "checkpoint", recipe.name, network.source, preset, inference, segmenter)
