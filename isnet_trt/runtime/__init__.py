"""An open bundle at work: `Segmenter` around a runtime on the host or on a GPU."""
