"""Text from a model, character by character."""
