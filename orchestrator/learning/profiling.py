"""Records chosen epochs of the learner with torch's profiler."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from orchestrator.replacing import replacing

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


def profile_path(folder: Path, epoch: int) -> Path:
    """Where the profile of an epoch, counted from 1, is written."""
    return folder / f"profile-{epoch}.json"


@contextmanager
def profiled(path: Path, device: str) -> Generator[None]:
    """Writes what torch does in the context to `path`, as a Chrome trace of the operators with their shapes."""
    # Both import slowly, and few runs need them.
    import torch
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if torch.device(device).type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, record_shapes=True) as profiler:
        yield
    with replacing(path) as working:
        profiler.export_chrome_trace(str(working))
