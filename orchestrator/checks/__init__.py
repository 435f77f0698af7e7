"""A configuration against the world: all problems at once, before anything starts."""
