"""Settings under the names of earlier releases, in code and on the command line (for files see `TableReader`)."""

from __future__ import annotations

import functools
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar, cast

from orchestrator.config.error import ConfigurationError, Problem, nearest
from orchestrator.config.fields import former_name, leaves, plain, section_type, settings_of
from orchestrator.config.similar import similar_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_Section = TypeVar("_Section")


def accepts_former_names(section: type[_Section]) -> type[_Section]:
    """A dataclass of settings whose constructor takes former names too, and whose values can be read by them.

    Raises TypeError saying what is meant for names that it does not have.
    """
    kind = cast(Any, section)
    construct = kind.__init__
    known = {field.name for field in fields(kind)}

    @functools.wraps(construct)
    def __init__(self: Any, **settings: Any) -> None:  # noqa: N807
        if not settings.keys() <= known:
            copies = known <= settings.keys()  # as `dataclasses.replace` does, which brings every present name
            for former, name in former_names(section).items():
                if former not in settings:
                    continue
                if name in settings and not copies:
                    raise TypeError(
                        f"{section.__name__} was given both {name} and {former}, its former name: leave out {former}"
                    )
                settings[name] = settings.pop(former)
            for name in sorted(settings.keys() - known):
                raise TypeError(f"{section.__name__} has no setting {name!r}: {_meant(name, section)}")
        construct(self, **{name: plain(value) for name, value in settings.items()})

    def __getattr__(self: Any, name: str) -> Any:  # noqa: N807
        present = None if name.startswith("__") else former_names(section).get(name)
        if present is None:
            raise AttributeError(f"{section.__name__!r} object has no attribute {name!r}")
        return getattr(self, present)

    kind.__init__ = __init__
    kind.__getattr__ = __getattr__
    return section


def _meant(name: str, section: type) -> str:
    """What to write for a name that a section does not have."""
    similar = similar_settings(name, section)
    if not similar:
        return nearest(name, settings_of(section))
    return f"did you mean {' or '.join(map(_in_code(section), similar))}?"


def _in_code(root: type) -> Callable[[str], str]:
    def written(path: str) -> str:
        outer, _, name = path.rpartition(".")
        kind = section_type(settings_of(root)[outer].hint) if outer else None
        return name if kind is None else f"{outer}={kind.__name__}({name}=...)"

    return written


def with_present_names(arguments: Sequence[str], config: object) -> list[str]:
    """The arguments of a command with the present names of the settings of `config` in place of former ones.

    Raises `ConfigurationError` where a setting is given under both.
    """
    former = {
        f"{path.rpartition('.')[0]}.{name}".lstrip("."): path
        for path, hint, _ in leaves(config)
        if (name := former_name(hint)) is not None
    }
    given = {flag_name(argument) for argument in arguments}
    both = [given_twice(path, name.rpartition(".")[2]) for name, path in former.items() if {name, path} <= given]
    if both:
        raise ConfigurationError(both)
    return [_with_present_name(argument, former) for argument in arguments]


def flag_name(argument: str) -> str | None:
    """`learning.clip` of --learning.clip and --learning.clip=...; None where there is no flag."""
    flag = argument.partition("=")[0]
    return flag.removeprefix("--").replace("-", "_") if flag.startswith("--") else None


def given_twice(path: str, former: str, value: object = "given twice") -> Problem:
    """The problem that a setting is given under its present and its former name, `former`."""
    name = path.rpartition(".")[2]
    expected = f"one value: {former} is the former name of {name}"
    return Problem(field=path, value=value, expected=expected, cure=f"leave out {former}", formerly=former)


def _with_present_name(argument: str, former: Mapping[str, str]) -> str:
    _, equals, value = argument.partition("=")
    present = former.get(flag_name(argument) or "")
    return argument if present is None else f"--{present}{equals}{value}"


@functools.cache
def former_names(section: type) -> Mapping[str, str]:
    """The present names of a section's settings by their former ones."""
    return {
        former: name
        for name, setting in settings_of(section).items()
        if (former := former_name(setting.hint)) is not None
    }
