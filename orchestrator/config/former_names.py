"""Settings under the names of earlier releases, in code and on the command line (for files see `TableReader`)."""

from __future__ import annotations

import functools
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar, cast

from orchestrator.config.annotations import Formerly
from orchestrator.config.fields import leaves, notes, settings_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_Section = TypeVar("_Section")


def accepts_former_names(section: type[_Section]) -> type[_Section]:
    """A dataclass of settings whose constructor takes former names too, and whose values can be read by them."""
    kind = cast(Any, section)
    construct = kind.__init__
    known = {field.name for field in fields(kind)}

    @functools.wraps(construct)
    def __init__(self: Any, **settings: Any) -> None:  # noqa: N807
        if not settings.keys() <= known:
            for former, name in former_names(section).items():
                if former in settings:
                    settings[name] = settings.pop(former)
        construct(self, **settings)

    def __getattr__(self: Any, name: str) -> Any:  # noqa: N807
        present = None if name.startswith("__") else former_names(section).get(name)
        if present is None:
            raise AttributeError(f"{section.__name__!r} object has no attribute {name!r}")
        return getattr(self, present)

    kind.__init__ = __init__
    kind.__getattr__ = __getattr__
    return section


def with_present_names(arguments: Sequence[str], config: object) -> list[str]:
    """The arguments of a command with the present names of the settings of `config` in place of former ones."""
    former = {
        f"{path.rpartition('.')[0]}.{note.name}".lstrip("."): path
        for path, hint, _ in leaves(config)
        for note in notes(hint)
        if isinstance(note, Formerly)
    }
    return [_with_present_name(argument, former) for argument in arguments]


def _with_present_name(argument: str, former: Mapping[str, str]) -> str:
    flag, equals, value = argument.partition("=")
    present = former.get(flag.removeprefix("--").replace("-", "_")) if flag.startswith("--") else None
    return argument if present is None else f"--{present}{equals}{value}"


@functools.cache
def former_names(section: type) -> Mapping[str, str]:
    """The present names of a section's settings by their former ones."""
    return {
        note.name: name
        for name, setting in settings_of(section).items()
        for note in notes(setting.hint)
        if isinstance(note, Formerly)
    }
