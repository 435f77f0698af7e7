"""How many processor cores this process may use: what its affinity allows, and the CPU quota of its container."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_ESCAPE = re.compile(r"\\([0-7]{3})")  # mountinfo writes spaces and the like in octal


def available_cores(root: Path = Path("/")) -> int:
    """Whole cores, at least 1. A quota of 2.5 cores counts as 2: a third thread would have all of them wait.

    `root` is where /proc and the control groups are looked for.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    return cores if quota is None else max(1, min(cores, math.floor(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of time that control groups (cgroups, version 1 or 2) give this process; None: no limit.

    The limit of every group around its own counts as well, and the smallest holds.
    """
    quotas = [quota for folder in _groups(root) if (quota := _quota_of(folder)) is not None]
    return min(quotas, default=None)


def _groups(root: Path) -> Iterator[Path]:
    """The folders of the groups that this process is in, outermost last, as far as they can be seen from here."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:  # no Linux, or /proc is hidden
        return
    for membership in memberships:
        _, controllers, group = membership.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mounted, place in _mounts(mounts, controllers):
            yield from _folders(root / place.lstrip("/"), group, mounted)


def _mounts(mounts: list[str], controllers: str) -> Iterator[tuple[str, str]]:
    """Which group is mounted where, of the hierarchy that has the `controllers` (none: that of version 2)."""
    for line in mounts:
        left, _, right = line.partition(" - ")
        kind, _, options = right.partition(" ")
        fits = kind == "cgroup" and "cpu" in options.split()[-1].split(",") if controllers else kind == "cgroup2"
        if fits:
            mounted, place = (_ESCAPE.sub(lambda code: chr(int(code[1], 8)), part) for part in left.split()[3:5])
            yield mounted, place


def _folders(place: Path, group: str, mounted: str) -> Iterator[Path]:
    """From the group to the outermost one that is mounted. In a container the names may be those outside: then only
    what is mounted itself is known."""
    try:
        inner = PurePosixPath(group).relative_to(mounted)
    except ValueError:
        inner = PurePosixPath()
    for part in (inner, *inner.parents):
        if ".." not in part.parts:
            yield place / part


def _quota_of(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return None if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no limit, or none that this process may see
        return None
