"""Run bundles on systems that schedule work over processes and machines."""
