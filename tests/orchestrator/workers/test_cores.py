"""The number of cores in a container, from trees of files as Linux shows them."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from orchestrator.workers.cores import available_cores, cpu_quota

V2_MOUNT = "30 23 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"


def tree(root: Path, cgroup: str, mounts: str, **files: str) -> Path:
    """Files by their paths, in which `__` stands for a slash."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup + "\n")
    (root / "proc/self/mountinfo").write_text(f"31 23 0:28 / / rw - overlay overlay rw\n{mounts}\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def v2(root: Path, group: str, **limits: str) -> Path:
    files = {f"{place}__cpu.max" if place else "cpu.max": limit for place, limit in limits.items()}
    return tree(root, f"0::{group}", V2_MOUNT, **files)


def v1(root: Path, group: str, mounted: str, **limits: tuple[int, int]) -> Path:
    files: dict[str, str] = {}
    for place, (quota, period) in limits.items():
        prefix = f"cpu,cpuacct__{place}__".replace("____", "__")
        files |= {f"{prefix}cpu.cfs_quota_us": str(quota), f"{prefix}cpu.cfs_period_us": str(period)}
    mounts = f"32 31 0:29 {mounted} /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct"
    return tree(root, f"5:memory:/x\n4:cpu,cpuacct:{group}\n1:name=systemd:{group}", mounts, **files)


def test_the_quota_of_a_container_with_groups_of_version_2(tmp_path: Path) -> None:
    assert cpu_quota(v2(tmp_path, "/", **{"": "250000 100000"})) == 2.5


def test_without_a_limit_there_is_none(tmp_path: Path) -> None:
    assert cpu_quota(v2(tmp_path, "/a", **{"a": "max 100000", "": "max 100000"})) is None


def test_the_tightest_limit_around_holds(tmp_path: Path) -> None:
    limits = {"": "800000 100000", "pod": "150000 50000", "pod__app": "max 100000"}
    assert cpu_quota(v2(tmp_path, "/pod/app", **limits)) == 3.0


def test_a_group_outside_of_what_is_mounted_counts_by_what_is(tmp_path: Path) -> None:
    assert cpu_quota(v2(tmp_path, "/../sibling", **{"": "100000 100000"})) == 1.0


def test_groups_of_version_1(tmp_path: Path) -> None:
    root = v1(tmp_path, "/docker/abc", "/", **{"docker__abc": (150_000, 100_000), "docker": (-1, 100_000)})
    assert cpu_quota(root) == 1.5


def test_in_a_container_groups_of_version_1_are_named_as_they_are_outside(tmp_path: Path) -> None:
    assert cpu_quota(v1(tmp_path / "own", "/docker/abc", "/docker/abc", **{"": (300_000, 100_000)})) == 3.0
    assert cpu_quota(v1(tmp_path / "other", "/docker/abc", "/elsewhere", **{"": (50_000, 100_000)})) == 0.5


def test_where_both_versions_are_mounted_the_one_with_the_processor_counts(tmp_path: Path) -> None:
    mounts = (
        "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
    )
    files = {"cpu__cpu.cfs_quota_us": "200000", "cpu__cpu.cfs_period_us": "100000"}
    assert cpu_quota(tree(tmp_path, "1:cpu:/\n0::/", mounts, **files)) == 2.0


@pytest.mark.parametrize("limit", ["", "many 100000", "100000 0", "100000"])
def test_what_cannot_be_understood_is_no_limit(tmp_path: Path, limit: str) -> None:
    assert cpu_quota(v2(tmp_path, "/", **{"": limit})) is None


def test_without_proc_the_affinity_decides(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    assert available_cores(tmp_path) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("quota", [0.25, 1.0, 1.99, 2.5, 1e6])
def test_whole_cores_are_used_at_least_one_and_no_more_than_there_are(tmp_path: Path, quota: float) -> None:
    root = v2(tmp_path, "/", **{"": f"{round(quota * 100_000)} 100000"})
    assert available_cores(root) == max(1, min(math.floor(quota), len(os.sched_getaffinity(0))))
