"""List, verify, show, prune or export the checkpoints of a run, in a folder or an object store."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import tyro

from orchestrator.checkpoints.checkpoint import Checkpoint, not_understood, open_checkpoint
from orchestrator.checkpoints.filesystem import REAL
from orchestrator.checkpoints.find import as_address, find_checkpoint, folders_of, local_place, nothing_at
from orchestrator.checkpoints.folder import CheckpointFolder
from orchestrator.checkpoints.manifest import MANIFEST, POLICY, CheckpointError
from orchestrator.checkpoints.retention import KeepAny, KeepBest, KeepEvery, KeepLast, Retention
from orchestrator.command.words import Switch
from orchestrator.config.error import nearest
from orchestrator.config.user_path import user_path

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from orchestrator.checkpoints.remote import RemoteCheckpoints

_Where: TypeAlias = Annotated[str, tyro.conf.Positional]


@dataclass(frozen=True, slots=True, kw_only=True)
class List:
    """List checkpoints, oldest first."""

    where: _Where
    """A run's folder, its checkpoints folder, or the address of a run in a store (s3://bucket/...)."""
    json: Switch = False
    """Print one JSON object per checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify:
    """Read every file and compare it with its manifest; fails if anything is damaged. Changes nothing."""

    where: _Where
    """A run's folder or address, or one of its checkpoints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Show:
    """Print the manifest of a checkpoint, or of a run's newest checkpoint."""

    where: _Where
    """A run's folder or address, or one of its checkpoints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """Delete the checkpoints that no rule keeps. The newest valid one is always kept, and so is one in use."""

    where: _Where
    """A run's folder, its checkpoints folder, or the address of a run in a store."""
    keep: int
    """How many of the newest checkpoints to keep."""
    keep_best: int = 0
    """How many of the best checkpoints by metric to keep."""
    best_metric: str | None = None
    """The metric that ranks them."""
    best_mode: Literal["max", "min"] = "max"
    """Whether the largest or the smallest value is best."""
    keep_every: int = 0
    """Also keep the checkpoints of every this many epochs."""
    dry_run: Switch = False
    """Only print what would be deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """Write only the weights: .safetensors, or .pt for `torch.load(..., weights_only=True)`."""

    where: _Where
    """A run's folder or address, or one of its checkpoints."""
    output: Annotated[Path, tyro.conf.Positional]
    """The file to write; it must not exist."""


def run_command(arguments: Sequence[str]) -> int:
    """Runs one of the commands and returns its exit code. Raises CheckpointError."""
    commands = {"list": List, "verify": Verify, "show": Show, "prune": Prune, "export": Export}
    command: Any = tyro.extras.subcommand_cli_from_dict(
        commands, prog="orchestrator checkpoints", description=__doc__, args=arguments
    )
    match command:
        case List():
            return _list(command)
        case Verify():
            return _verify(command.where)
        case Show():
            return _show(command.where)
        case Prune():
            return _prune(command)
        case _:
            return _export(command)


def _list(command: List) -> int:
    found = _place(command.where)
    for checkpoint in found.all():
        manifest = checkpoint.manifest
        size = sum(file["bytes"] for file in manifest["files"].values())
        if command.json:
            facts = {name: value for name, value in manifest.items() if name not in ("files", "checksum", "folder")}
            print(json.dumps({"name": checkpoint.path.name, "bytes": size, **facts, "metrics": checkpoint.metrics}))
        else:
            steps, created = manifest.get("agent_step", ""), manifest["created"] or ""
            name, epoch = checkpoint.path.name, checkpoint.epoch
            print(f"{name:12}  epoch {epoch:<8}  steps {steps!s:<12}  {_size(size)}  {created}")
    return found.report()


def _verify(where: str) -> int:
    found = _place(where)
    for checkpoint in found.all():
        try:
            found.verify(checkpoint)
        except CheckpointError as error:
            found.problems.append(str(error))
        else:
            print(f"{checkpoint.path.name}: ok")
    return found.report()


def _show(where: str) -> int:
    found = _place(where)
    checkpoints = found.all()
    if checkpoints:
        print(json.dumps({**checkpoints[-1].manifest, "metrics": checkpoints[-1].metrics}, indent=2))
    return found.report()


def _prune(command: Prune) -> int:
    if command.keep < 1 or command.keep_best < 0 or command.keep_every < 0:
        raise CheckpointError("--keep must be at least 1, --keep-best and --keep-every at least 0")
    rules: list[Retention] = [KeepLast(command.keep)]
    if command.keep_best:
        if command.best_metric is None:
            raise CheckpointError("--keep-best needs --best-metric, the name of a metric of the manifests")
        rules.append(KeepBest(command.keep_best, command.best_metric, command.best_mode))
    elif command.best_metric is not None:
        raise CheckpointError(f"--best-metric {command.best_metric} needs --keep-best, how many of the best to keep")
    if command.keep_every:
        rules.append(KeepEvery(command.keep_every))
    found = _place(command.where)
    if command.best_metric is not None:
        _check_metric(command.best_metric, found.metrics(), command.where)
    deleted = found.prune(KeepAny(tuple(rules)), dry_run=command.dry_run)
    kept = [name for name in found.names if name not in deleted]
    deletion = "would be deleted" if command.dry_run else "deleted"
    for name in found.names:
        print(f"{name}: {deletion if name in deleted else 'kept'}")
    print(f"{len(deleted)} {deletion}, {len(kept)} kept")
    return found.report()


def _check_metric(name: str, known: Collection[str], where: str) -> None:
    """Raises CheckpointError for a metric that would keep no checkpoint, whichever are the best."""
    if name not in known:
        cure = nearest(name, sorted(known)) if known else "leave out --keep-best: they have no metrics"
        raise CheckpointError(
            f"--best-metric {name}: no checkpoint of {where} has this metric; nothing was deleted; {cure}"
        )


def _export(command: Export) -> int:
    if command.output.suffix not in (".safetensors", ".pt"):
        raise CheckpointError(f"{command.output} must end in .safetensors or .pt")
    checkpoint = find_checkpoint(command.where)
    content = checkpoint.read(POLICY)
    output = user_path(command.output)
    try:
        if output.suffix == ".safetensors":
            REAL.write(output, content)
        else:
            import torch
            from safetensors import SafetensorError
            from safetensors.torch import load

            try:
                weights = load(content)
            except (SafetensorError, KeyError, ValueError) as error:
                raise not_understood(checkpoint.file(POLICY), error) from error
            with output.open("xb") as file:
                torch.save(weights, file)
    except FileExistsError as error:
        raise CheckpointError(f"{output} exists, and is left as it is: name another file, or delete it") from error
    except OSError as error:
        raise CheckpointError(f"{output} cannot be written: {error.strerror}") from error
    print(f"{output}: weights of {checkpoint.path.name}, epoch {checkpoint.epoch}")
    return 0


class _Place:
    """The checkpoints that a command is about, in a folder or in a store, and what is wrong with them."""

    def __init__(
        self, folder: CheckpointFolder | RemoteCheckpoints, names: Sequence[str], *, one: bool = False
    ) -> None:
        self._folder = folder
        self.names = names
        self._one = one
        self.problems: list[str] = []

    def all(self) -> list[Checkpoint]:
        found: list[Checkpoint] = []
        for name in self.names:
            try:
                found.append(self._open(name))
            except CheckpointError as error:
                self.problems.append(str(error))
        return found

    def verify(self, checkpoint: Checkpoint) -> None:
        if isinstance(self._folder, CheckpointFolder):
            checkpoint.verify()
        else:
            self._folder.verify(checkpoint.path.name)

    def metrics(self) -> set[str]:
        """The names of all numbers that rank a checkpoint, of those that can be read."""
        names: set[str] = set()
        for name in self.names:
            with suppress(CheckpointError):  # pruning passes it over as well
                metrics = self._open(name).metrics
                names |= {metric for metric, value in metrics.items() if isinstance(value, (int, float))}
        return names

    def prune(self, retention: Retention, *, dry_run: bool) -> list[str]:
        if self._one:
            raise CheckpointError("prune wants a run's folder or address, not one of its checkpoints")
        if not isinstance(self._folder, CheckpointFolder):
            return self._folder.prune(retention, dry_run=dry_run)
        self._folder.retention = retention
        return [path.name for path in self._folder.prune(dry_run=dry_run)]

    def report(self) -> int:
        for problem in self.problems:
            print(f"orchestrator checkpoints: {problem}", file=sys.stderr)
        return 1 if self.problems else 0

    def _open(self, name: str) -> Checkpoint:
        if isinstance(self._folder, CheckpointFolder):
            return open_checkpoint(self._folder.path / name)
        return self._folder.open(name)


def _place(where: str) -> _Place:
    address = as_address(where)
    if address is not None and not address.startswith("file://"):
        from orchestrator.checkpoints.objects import Objects
        from orchestrator.checkpoints.remote import RemoteCheckpoints, run_and_name

        run, name = run_and_name(address)
        remote = RemoteCheckpoints(Objects(run))
        names = _some(remote.list(), where) if name is None else [name]
        return _Place(remote, names, one=name is not None)
    path = local_place(where)
    if os.path.lexists(path / MANIFEST):
        return _Place(CheckpointFolder(path.parent), [path.name], one=True)
    folder = next((folder for folder in folders_of(path) if folder.list()), None)
    if folder is None:
        raise CheckpointError(nothing_at(path))
    return _Place(folder, [found.name for found in folder.list()])


def _some(names: Sequence[str], where: str) -> Sequence[str]:
    if not names:
        raise CheckpointError(f"{where} has no checkpoints: give a run's folder, or its address in an object store")
    return names


def _size(count: float) -> str:
    units = ["B", "KB", "MB", "GB"]
    while count >= 1000 and len(units) > 1:
        units.pop(0)
        count /= 1000
    return f"{count:6.4g} {units[0]:2}"
