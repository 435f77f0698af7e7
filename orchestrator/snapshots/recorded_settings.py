"""The settings that a checkpoint was trained with, and the spaces of its environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.checkpoints import CheckpointError
from orchestrator.checkpoints.checkpoint import not_understood
from orchestrator.checkpoints.find import as_address
from orchestrator.config.error import ConfigurationError
from orchestrator.config.file import parse_config, read_config
from orchestrator.config.trust import check_trust

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.checkpoints import Checkpoint
    from orchestrator.config.settings import TrainerConfig

CONFIG, SPACES = "config.toml", "spaces.json"


def read_config_of(checkpoint: Checkpoint) -> TrainerConfig:
    """The settings of the run that took the checkpoint; those of its folder, if the checkpoint has none itself.

    Raises CheckpointError where there are none, ConfigurationError where they are not of this release.
    """
    if CONFIG in checkpoint.manifest["files"]:
        content = checkpoint.read(CONFIG)
        try:
            return parse_config(content, checkpoint.file(CONFIG))
        except ConfigurationError as error:
            if isinstance(error.__cause__, ValueError):  # it is no TOML at all
                raise not_understood(checkpoint.file(CONFIG), error.__cause__) from error
            raise
    file = checkpoint.path.parent.parent / CONFIG
    if not file.is_file():
        raise CheckpointError(f"neither {checkpoint.path} nor its run has a {CONFIG}, so its settings are not known")
    return read_config(file)


def read_settings(
    checkpoint: Checkpoint, where: Path | str, *, trust_code: bool = False, own: TrainerConfig | None = None
) -> TrainerConfig:
    """The settings of the run that took a checkpoint, which was found at `where`.

    Where that is an address and not a path, the settings are not the user's: raises `ConfigurationError` as
    `check_trust` unless `trust_code`. Otherwise raises as `read_config_of`.
    """
    config = read_config_of(checkpoint)
    address = as_address(where)
    if address is not None and not trust_code:
        check_trust(config, address, own=own)
    return config
