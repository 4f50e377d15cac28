"""Training data: augmentation and the datasets that feed it."""
