"""Training a model: the loop, the optimizers, the saved state, and how a run is watched and stopped."""
