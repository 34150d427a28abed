"""chargpt: a character-level GPT as a reproducible DVC pipeline."""
