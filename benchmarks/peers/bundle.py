"""A bundle under isnet_trt itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.base import Missing, Output, Setup
from isnet_trt import Segmenter
from isnet_trt.errors import IsnetError
from isnet_trt.settings import Inference


def load(setup: Setup) -> BundleRunner:
    """The bundle with the engine that it was built for."""
    if setup.bundle is None:
        raise Missing("no bundle was given")
    try:
        segmenter = Segmenter.open(setup.bundle, threads=setup.threads)
    except IsnetError as error:
        raise Missing(str(error)) from None
    if setup.batch:
        segmenter.runtime.batch = setup.batch
    return BundleRunner(segmenter)


class BundleRunner:
    """A `Segmenter` as a contender."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter
        self.description = segmenter.engine.description

    def run(self, image: NDArray[np.uint8], inference: Inference) -> Output:
        """See `benchmarks.peers.base.Runner.run`."""
        segmentation = self.segmenter(image, inference=inference)
        return Output(segmentation.labels, segmentation.seconds)

    def close(self) -> None:
        """Close the engine."""
        self.segmenter.close()
