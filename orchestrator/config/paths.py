"""The settings by their paths, without a path as text: `PATH.learning.clip` is `learning.clip` to whoever prints it.

So a setting's name stands where it is defined; type checkers and editors find all that is said of it elsewhere.
"""

from __future__ import annotations

from typing import Any, cast

from orchestrator.config.error import Problem
from orchestrator.config.fields import former_name, section_type, settings_of, table_type
from orchestrator.config.settings import TrainerConfig


class _Path:
    def __init__(self, hint: Any, path: str = "") -> None:
        self._hint, self._path = hint, path

    def __getattr__(self, name: str) -> _Path:
        kind = section_type(self._hint)
        if kind is None or name not in settings_of(kind):
            raise AttributeError(f"there is no setting {self._path}.{name}")
        return _Path(settings_of(kind)[name].hint, f"{self._path}.{name}".lstrip("."))

    def __getitem__(self, index: int) -> _Path:
        return _Path(table_type(self._hint), f"{self._path}[{index}]")

    def __str__(self) -> str:
        return self._path

    @property
    def formerly(self) -> str | None:
        return former_name(self._hint)

    def value_in(self, config: object) -> object:
        for name in self._path.split("."):
            config = getattr(config, name)
        return config


PATH = cast("TrainerConfig", _Path(TrainerConfig))
"""To type checkers a configuration, so that they know its fields; in truth what turns into their paths as text."""

_THE_VALUE = object()


def problem_with(
    config: TrainerConfig, setting: object, *, expected: str, cure: str, value: object = _THE_VALUE
) -> Problem:
    """A problem of the setting at `PATH`...; `value` where another one than its own is to be shown."""
    path = cast("_Path", setting)
    if value is _THE_VALUE:
        value = path.value_in(config)
    return Problem(field=str(path), value=value, expected=expected, cure=cure, formerly=path.formerly)
