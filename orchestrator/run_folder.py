"""The folder of a run: its name, making one that no other run has, and what speaks against using one."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from orchestrator.config import TrainerConfig
from orchestrator.config_error import ConfigurationError, Problem
from orchestrator.config_fields import leaves, value_at
from orchestrator.config_file import read_config, to_table

_CONTENTS = ("config.toml", "metrics.jsonl", "checkpoints")
_MAY_CHANGE = re.compile(
    r"total_agent_steps|run_dir|device|collection\\.(collectors|backend)|learning\\.threads"
    r"|(checkpoints|evaluation|metrics)\\..*"
)


def holds_run(folder: Path) -> bool:
    """Whether a run has written into the folder."""
    return any((folder / name).exists() for name in _CONTENTS)


def default_run_dir(environment: str, now: datetime.datetime) -> Path:
    """`runs/<environment>-<date-time>`."""
    name = re.sub(r"[^\\w.-]+", "-", environment).strip("-.")
    return Path("runs") / f"{name}-{now:%Y%m%d-%H%M%S}"


def claim(wanted: Path) -> Path:
    """Makes a folder for a run, and returns it: `wanted`, or `wanted-2` and so on where that one is taken.

    Of several runs that start in one instant, each gets its own. A `wanted` that exists already is taken if it holds
    a run. What cannot be made is returned as it is: `folder_problems` says why.
    """
    name = wanted.name or wanted.absolute().name
    with contextlib.suppress(OSError):
        if wanted.is_dir() and not holds_run(wanted):
            return wanted
        for number in itertools.count(1):
            folder = wanted if number == 1 else wanted.absolute().parent / f"{name}-{number}"
            with contextlib.suppress(FileExistsError):
                folder.mkdir(parents=True)
                return folder
    return wanted
