"""Going on with a run: from which checkpoint, with which settings, and what is then not as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.checkpoints import Checkpoint, CheckpointFolder, find_checkpoint
from orchestrator.checkpoints.find import as_address, local_place
from orchestrator.checkpoints.folder import order
from orchestrator.checkpoints.locks import writer_of
from orchestrator.config.annotations import MAY_CHANGE
from orchestrator.config.error import ConfigurationError, Problem
from orchestrator.config.fields import leaves, notes
from orchestrator.config.file import read_config
from orchestrator.config.options import same_option
from orchestrator.config.paths import PATH, problem_with
from orchestrator.config.run_folder import holds_run
from orchestrator.snapshots.recorded_settings import CONFIG, read_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.config.settings import TrainerConfig
    from orchestrator.snapshots.checkpoint_files import ResumePoint


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeSource:
    """A checkpoint to resume from, and the settings of its run.

    `config.run_dir` is the folder of the run that it is the newest checkpoint of; None where it is not, or where it
    comes from elsewhere: then the run resumes in another folder, or in none.
    """

    checkpoint: Checkpoint
    config: TrainerConfig
    home: Path | None = None
    """The folder of the checkpoint's run, where that is here."""
    edits: Mapping[str, tuple[object, object]] = field(default_factory=dict[str, "tuple[object, object]"])
    """What the user has changed since in the config.toml there, by path: the value before, and the one in `config`."""

    def goes_on_in(self, run_dir: Path | None) -> bool:
        """Whether a run in that folder resumes in place."""
        here = self.config.run_dir
        return run_dir is not None and here is not None and run_dir.absolute() == here.absolute()


def find_resume_source(
    where: Path | str, *, trust_code: bool = False, own: TrainerConfig | None = None
) -> ResumeSource:
    """The newest sound checkpoint of a run, or one checkpoint, at a path or URI, and the settings of its run, with what
    has been changed in the run's config.toml since. Blocks: reads, and may download.

    Raises CheckpointError naming what is missing or damaged, ConfigurationError where config.toml changes a setting
    that must stay, and where settings from a URI name code, unless `trust_code`, or the user's `own` settings name it.
    """
    folder = None if as_address(where) is not None else local_place(where).absolute()
    if folder is not None and holds_run(folder) and (folder / "checkpoints").is_dir():
        checkpoint = CheckpointFolder(folder / "checkpoints").newest_valid()
        run_dir = home = folder
    else:
        checkpoint = find_checkpoint(where if folder is None else folder)
        siblings = checkpoint.path.parent
        home = siblings.parent if folder is not None and holds_run(siblings.parent) else None
        newest = home is not None and CheckpointFolder(siblings).list()[-1] == checkpoint.path
        run_dir = home if newest else None
    recorded = read_settings(checkpoint, where, trust_code=trust_code, own=own)
    config = recorded if home is None else _edited_settings(recorded, home)
    edits = {path: (before, now) for path, _, before, now in _differences(recorded, config)}
    if config.run_dir == recorded.run_dir or config.run_dir is None:
        config = replace(config, run_dir=run_dir)
    return ResumeSource(checkpoint=checkpoint, config=config, home=home, edits=edits)


def _edited_settings(recorded: TrainerConfig, home: Path) -> TrainerConfig:
    """The settings in the config.toml of a run. Raises ConfigurationError naming all that may not differ from what a
    checkpoint has `recorded`, with both values."""
    file = home / CONFIG
    if not file.is_file():
        return recorded
    config = read_config(file).with_shards(recorded.shards)
    refused = [
        Problem(
            field=path,
            value=now,
            expected=f"{before!r}, with which the run began: {file} was changed, and this may not change on resume",
            cure="write there again what it was, or start a new run with --config and a copy of the file",
        )
        for path, hint, before, now in _differences(recorded, config)
        if not _may_change(path, hint, before, now)
    ]
    if refused:
        raise ConfigurationError(refused)
    # A folder that was moved is where it is now.
    return replace(config, run_dir=recorded.run_dir) if config.run_dir in (None, home) else config


def _differences(before: TrainerConfig, now: TrainerConfig) -> Iterator[tuple[str, Any, object, object]]:
    """Path, annotation and both values of every setting that differs, shards that follow from the cells included."""
    before, now = (replace(config, learning=replace(config.learning, shards=config.shards)) for config in (before, now))
    values = {path: value for path, _, value in leaves(before)}
    for path, hint, value in leaves(now):
        same = same_option(values[path], value) if isinstance(value, Mapping) else values[path] == value
        if not same:
            yield path, hint, values[path], value


def _may_change(path: str, hint: Any, before: object, now: object) -> bool:
    # What `auto` stands for is found after a few epochs, which are the same whatever it is.
    found = path == str(PATH.staleness) and before == "auto" and isinstance(now, (int, float)) and 0 < now <= 1
    return found or MAY_CHANGE in notes(hint)


def resume_problems(source: ResumeSource, config: TrainerConfig) -> Iterator[Problem]:
    """Where `config` contradicts the run to resume, or leaves it nothing to do."""
    for path, hint, before, now in _differences(source.config, config.with_shards(source.config.shards)):
        if not _may_change(path, hint, before, now):
            expected = f"{before!r}: a resumed run keeps the settings of its checkpoint"
            cure = f"{'leave it out' if before is None else f'set it to {before!r}'}, as it was, or start a new run"
            if path == str(PATH.init_from):
                cure = "leave it out, since a resumed run has its own weights; or start a new run from these"
            yield Problem(field=path, value=now, expected=expected, cure=cure)
    yield from _later_checkpoints(source, config)
    done = int(source.checkpoint.manifest["agent_step"])
    if config.total_agent_steps <= done:
        expected = f"more than the {done} agent steps that the checkpoint has done"
        if source.config.total_agent_steps <= done:
            expected = f"the run has ended: to train it further, {expected}"
        cure = f"set it to {2 * done}, say, to train further"
        yield problem_with(config, PATH.total_agent_steps, expected=expected, cure=cure)


def _later_checkpoints(source: ResumeSource, config: TrainerConfig) -> Iterator[Problem]:
    """Beside which none could be committed, in the run's own folder."""
    if config.run_dir is None or not source.goes_on_in(config.run_dir) or not config.checkpoints.enabled:
        return
    folder = config.run_dir / "checkpoints"
    newest = next(reversed(CheckpointFolder(folder).list()), None)
    epoch = source.checkpoint.epoch
    if newest is not None and order(newest.name)[0] > epoch:
        writer = writer_of(folder)
        if writer is not None:  # it has written some since the checkpoint was found
            yield problem_with(
                config,
                PATH.run_dir,
                expected=f"a folder to which no other run writes its checkpoints, as {writer} does",
                cure="stop that run, or wait for its end, before you resume it; or resume in another folder",
            )
            return
        copied = f" (and was written as epoch {epoch}: a copy, it seems)" if newest == source.checkpoint.path else ""
        yield problem_with(
            config,
            PATH.run_dir,
            expected=f"a folder without checkpoints of later epochs than {epoch}, after which this run resumes: it"
            f" holds {newest.name}{copied}",
            cure=f"move {newest} elsewhere, or resume in another folder",
        )


def lost_edits(source: ResumeSource, config: TrainerConfig) -> Iterator[str]:
    """What was changed by hand in config.toml and is changed again by `config`, in words for the log."""
    for path, _, _, now in _differences(source.config, config):
        if path in source.edits:
            yield f"{path} = {now!r}, as asked for now, takes the place of {source.edits[path][1]!r} in config.toml"


def changes_on_resume(resume: ResumePoint, config: TrainerConfig, *, why_new: str | None) -> Iterator[str]:
    """What is not as if the run had never been interrupted, in words for the log; `why_new` says why the
    episodes begin again, where they do."""
    before = resume.config
    if resume.learner is None:
        yield "the checkpoint holds the policy alone: the optimizer and all random generators start afresh"
    elif config.collection.collectors != before.collection.collectors:
        yield (
            f"with {config.collection.collectors} collectors instead of {before.collection.collectors}: "
            "all episodes begin again"
        )
    elif why_new is not None:
        yield f"the episodes that were in progress begin again: {why_new}"
    if config.run_dir is None and before.run_dir is not None:
        yield f"without a folder ({PATH.run_dir}): it saves no checkpoints and writes no metrics"
    if config.device != before.device:
        yield f"on device {config.device!r} instead of {before.device!r}: results may differ in the last digits"
    acts_on, acted_on = config.collection.device, before.collection.device
    if acts_on != acted_on:
        yield f"acting on device {acts_on!r} instead of {acted_on!r}: results may differ in the last digits"
    falls = config.learning.learning_rate_schedule in ("linear", "cosine")
    if config.total_agent_steps != before.total_agent_steps and falls:
        yield (
            f"to {config.total_agent_steps} agent steps instead of {before.total_agent_steps}: "
            f"the {config.learning.learning_rate_schedule} learning-rate schedule is stretched accordingly"
        )
