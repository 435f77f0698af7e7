"""Checkpoints: committed atomically, verified when read, kept by rules, copied to object stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from state.lazy_names import lazy_names

if TYPE_CHECKING:
    from orchestrator.checkpoints.checkpoint import Checkpoint as Checkpoint
    from orchestrator.checkpoints.find import find_checkpoint as find_checkpoint
    from orchestrator.checkpoints.folder import CheckpointFolder as CheckpointFolder
    from orchestrator.checkpoints.manifest import MANIFEST as MANIFEST
    from orchestrator.checkpoints.manifest import POLICY as POLICY
    from orchestrator.checkpoints.manifest import CheckpointDamaged as CheckpointDamaged
    from orchestrator.checkpoints.manifest import CheckpointError as CheckpointError
    from orchestrator.checkpoints.objects import StoreUnavailable as StoreUnavailable
    from orchestrator.checkpoints.retention import KeepAll as KeepAll
    from orchestrator.checkpoints.retention import KeepAny as KeepAny
    from orchestrator.checkpoints.retention import KeepBest as KeepBest
    from orchestrator.checkpoints.retention import KeepEvery as KeepEvery
    from orchestrator.checkpoints.retention import KeepLast as KeepLast
    from orchestrator.checkpoints.retention import Retention as Retention
    from orchestrator.checkpoints.retention import retention_of as retention_of
else:
    __getattr__, __dir__ = lazy_names(__name__)
