"""The `chargpt` command."""
