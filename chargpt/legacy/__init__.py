"""Legacy text weights: the format, its dialects, the migrated model."""
