"""The time line of a run and its trace."""
