"""What is known about a run."""
