"""Where a model's loss comes from, and a page about the model."""
