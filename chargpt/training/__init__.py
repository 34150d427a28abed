"""Training a model: the loop, what it saves, how it is watched."""
