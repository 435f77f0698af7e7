"""Settings that come with the package, one file per task in `orchestrator/presets/`: starting points, by name."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.config.error import ConfigurationError, Problem, nearest
from orchestrator.config.file import parse_config

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from orchestrator.config.settings import TrainerConfig

_SUFFIX = ".toml"


def preset_names() -> list[str]:
    """The names of all presets, in alphabetical order."""
    names = (file.name for file in _folder().iterdir())
    return sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))


def preset_text(name: str) -> str:
    """The file of a preset, with its comments. Raises `ConfigurationError` for an unknown name, with the nearest."""
    known = preset_names()
    if name not in known:
        cure = f"{nearest(name, known)} (`orchestrator presets` lists them; a file of your own is given by --config)"
        raise ConfigurationError([Problem(field="preset", value=name, expected="the name of a preset", cure=cure)])
    return (_folder() / f"{name}{_SUFFIX}").read_text(encoding="utf-8")


def read_preset(name: str) -> TrainerConfig:
    """The settings of a preset; what its file does not say keeps its default. Raises as `preset_text`."""
    return parse_config(preset_text(name).encode(), Path(f"{name}{_SUFFIX}"))


def _folder() -> Traversable:
    return importlib.resources.files("orchestrator") / "presets"
