"""Engines: what runs the network. A bundle's manifest says which one it was built for."""
