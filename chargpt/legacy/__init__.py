"""Legacy text weights: their format, their dialects, and their conversion to a model file."""
