"""Checkpoints: committed atomically, verified when read, kept by rules, copied to object stores."""

from orchestrator.checkpoints.checkpoint import Checkpoint
from orchestrator.checkpoints.find import find_checkpoint
from orchestrator.checkpoints.folder import CheckpointFolder
from orchestrator.checkpoints.manifest import MANIFEST, POLICY, CheckpointDamaged, CheckpointError
from orchestrator.checkpoints.retention import KeepAll, KeepAny, KeepBest, KeepEvery, KeepLast, Retention, retention_of

__all__ = [
    "MANIFEST",
    "POLICY",
    "Checkpoint",
    "CheckpointDamaged",
    "CheckpointError",
    "CheckpointFolder",
    "KeepAll",
    "KeepAny",
    "KeepBest",
    "KeepEvery",
    "KeepLast",
    "Retention",
    "find_checkpoint",
    "retention_of",
]
