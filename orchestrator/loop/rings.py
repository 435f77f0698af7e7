"""Names of the rings of shared memory that a run has."""

EXPERIENCE = "experience"
POLICY = "policy"
MOMENTS = "moments"
"""Of the optimizer, for snapshots."""
KEPT = "kept moments"
"""Of the optimizer, to replace a learner with."""
