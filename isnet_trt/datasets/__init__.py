"""Labelled sets of pictures on disk: the four public datasets, and those that a YAML file describes."""
