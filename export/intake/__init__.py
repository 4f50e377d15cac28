"""Intake of networks of other libraries: read the graph, normalise it, and examine it by running it."""
