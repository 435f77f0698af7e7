"""A trained policy in use, where there is no training: loading it, acting with it, exporting it."""
