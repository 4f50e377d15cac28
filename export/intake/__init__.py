"""Networks of others: read, brought to the form of our own exports, examined by running them, or refused.

proto, digest = read_onnx(path)
graph = normalise(proto, ports)
found = probe(graph, sizes)
"""
