"""Names that installed packages give to code of theirs: settings take them wherever they take
`package.module:function`.

A package declares them as entry points in the groups `orchestrator.environments`, `.wrappers`, `.networks`, `.losses`,
`.hooks` and `.sinks`. Whoever installed the package trusts it, so these names need no further trust. They are looked up
only when a name is neither one of ours nor a function's, so that others pay nothing for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.config.annotations import FUNCTION, Kind
from orchestrator.config.error import nearest
from orchestrator.config.own_code import OwnCodeError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.metadata import EntryPoint


def plugin_names(kind: Kind) -> list[str]:
    """The names that installed packages give to code of this kind."""
    return sorted({point.name for point in _entry_points(kind)})


def code_named(name: str, kind: Kind, known: Iterable[str] = ()) -> str:
    """The `package.module:function` that `name` stands for: itself, or what an installed package calls so.

    Raises OwnCodeError where no package does, with the nearest of these names and of the `known` ones; where several
    packages do; and where one does not name a function.
    """
    if FUNCTION.fullmatch(name):
        return name
    points = _entry_points(kind)
    values = {point.value: _package(point) for point in points if point.name == name}
    if not values:
        others = [*known, *sorted({point.name for point in points})]
        hint = f"{nearest(name, others)}; " if others else ""
        what = {"losses": "loss"}.get(kind, kind[:-1])
        raise OwnCodeError(f"there is no {what} {name!r}: {hint}one of your own is named 'package.module:function'")
    if len(values) > 1:
        packages = " and ".join(values.values())
        raise OwnCodeError(
            f"{name!r} is ambiguous: {packages} have {kind} of this name; write {' or '.join(values)} instead"
        )
    ((value, package),) = values.items()
    if not FUNCTION.fullmatch(value):
        raise OwnCodeError(
            f"{package} declares {name!r} as {value!r} in orchestrator.{kind}, expected package.module:function:"
            " correct its entry point"
        )
    return value


def _entry_points(kind: Kind) -> tuple[EntryPoint, ...]:
    import importlib.metadata

    return tuple(importlib.metadata.entry_points(group=f"orchestrator.{kind}"))


def _package(point: EntryPoint) -> str:
    return "a package" if point.dist is None else point.dist.name
