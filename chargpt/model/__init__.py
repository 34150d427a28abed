"""The model: architecture, weights, and the model file."""
