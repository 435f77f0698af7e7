"""Everything a run needs to resume, to and from the files of a checkpoint."""
