"""The command line: the only place that prints, reads signals and exits."""
