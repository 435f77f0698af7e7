"""The folder of a run: its name, making one that no other run has, and what speaks against using one."""

from __future__ import annotations

import contextlib
import itertools
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.config.error import ConfigurationError
from orchestrator.config.file import to_table
from orchestrator.config.paths import PATH, problem_with
from orchestrator.config.reads import reads

if TYPE_CHECKING:
    import datetime
    from collections.abc import Generator, Iterator

    from orchestrator.config.error import Problem
    from orchestrator.config.settings import TrainerConfig

_CONTENTS = ("config.toml", "metrics.jsonl", "checkpoints")


def holds_run(folder: Path) -> bool:
    """Whether a run has written into the folder."""
    return any((folder / name).exists() for name in _CONTENTS)


def default_run_dir(environment: str, now: datetime.datetime) -> Path:
    """`runs/<environment>-<date-time>`."""
    name = re.sub(r"[^\w.-]+", "-", environment).strip("-.")
    return Path("runs") / f"{name}-{now:%Y%m%d-%H%M%S}"


@contextlib.contextmanager
def claimed(wanted: Path, *, may_exist: bool) -> Generator[Path, None, None]:
    """Makes a folder for a run and gives it: `wanted`, or `wanted-2` and so on if that is taken.

    Of several runs that start in one instant each gets its own. With `may_exist`, a `wanted` that is there and
    holds no run is not taken. If nothing can be made it gives `wanted`, and `folder_problems` says why. What was
    made is removed if an exception comes while it is still empty.
    """
    if wanted.name in ("", ".."):
        wanted = wanted.resolve()
    if may_exist and _is_free(wanted):
        yield wanted
        return
    folder = _make_first_free(wanted)
    made = None if folder is None else folder.absolute()
    try:
        yield folder or wanted
    except BaseException:
        if made is not None:
            with contextlib.suppress(OSError):
                made.rmdir()
        raise


def _is_free(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return folder.is_dir() and not holds_run(folder)
    return False


def _make_first_free(wanted: Path) -> Path | None:
    for number in itertools.count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError:
            return None
        return folder
    return None


@reads(PATH.run_dir)
def folder_problems(config: TrainerConfig, resuming: bool) -> Iterator[Problem]:
    """What speaks against the run's folder: it cannot be written, or, unless `resuming`, it holds a run already."""
    folder = config.run_dir
    if folder is None:
        return
    yield from _option_problems(config)
    try:
        occupied = holds_run(folder)
        _try_to_write(folder)
    except OSError as error:
        expected = f"a folder that can be written ({error.strerror})"
        cure = "choose another folder, or make this one writable"
        yield problem_with(config, PATH.run_dir, value=str(folder), expected=expected, cure=cure)
        return
    if occupied and not resuming:
        again = f"orchestrator train --config {folder / 'config.toml'}"
        cure = f"choose another folder; `{again}` repeats that run in a new one"
        expected = "a folder that holds no run yet"
        yield problem_with(config, PATH.run_dir, value=str(folder), expected=expected, cure=cure)


def _try_to_write(folder: Path) -> None:
    """Tries what the run will do, next to everything that exists, so that nothing is left behind."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    with tempfile.TemporaryDirectory(dir=existing, prefix=".orchestrator-") as probe:
        (Path(probe) / folder.relative_to(existing)).mkdir(parents=True, exist_ok=True)


def _option_problems(config: TrainerConfig) -> Iterator[Problem]:
    """A run with a folder records its settings, so they must be expressible."""
    try:
        to_table(config)
    except ConfigurationError as error:
        yield from error.problems
