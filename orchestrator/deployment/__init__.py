"""A trained policy in use, where there is no training: loading it and acting with it."""
