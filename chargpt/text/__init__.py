"""A text: its vocabulary, token ids, windows and split."""
