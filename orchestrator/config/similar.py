"""Which settings a wrong name may mean: in another section, under a former name, or as other libraries call them."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.config.annotations import CalledElsewhere
from orchestrator.config.fields import former_name, notes, section_type, settings_of

if TYPE_CHECKING:
    from collections.abc import Iterator


_SURE = 0.94
"""Likeness above which other names are not worth naming."""


class Place(NamedTuple):
    """A setting of a configuration: its section ("" at the top), its name, and what else it is or was called."""

    section: str
    name: str
    formerly: str | None
    elsewhere: tuple[str, ...]

    @property
    def path(self) -> str:
        """As `learning.clip`."""
        return f"{self.section}.{self.name}".lstrip(".")


def places_named(name: str, root: type) -> list[Place]:
    """Where settings of `root`, or sections, have this very name, or had it in earlier releases."""
    sections = [Place("", one, None, ()) for one, setting in settings_of(root).items() if section_type(setting.hint)]
    return [place for place in [*_places(root), *sections] if name in (place.name, place.formerly)]


def similar_settings(wrong: str, root: type) -> list[str]:
    """Paths of the settings that `wrong`, a path or a name, may mean, most likely first; empty where none is near.

    By its last part: the same name elsewhere, a former name, the name in other libraries, the initials, a near name.
    """
    name = wrong.rpartition(".")[2]
    places = list(_places(root))
    found = [place for place in places if name in (place.name, place.formerly, *place.elsewhere)]
    found = found or [place for place in places if name == "".join(word[0] for word in place.name.split("_"))]
    found = found or [place for place in places if difflib.SequenceMatcher(a=wrong, b=place.path).ratio() > _SURE]
    if not found:
        near = difflib.get_close_matches(wrong, [place.path for place in places], n=3)
        words = {word for place in places for word in (place.name, *place.elsewhere)}
        near_names = difflib.get_close_matches(name, words, n=3)
        found = [
            place for place in places if place.path in near or not {place.name, *place.elsewhere}.isdisjoint(near_names)
        ]
    return [place.path for place in found[:3]]


def _places(root: type) -> Iterator[Place]:
    for name, setting in settings_of(root).items():
        kind = section_type(setting.hint)
        if kind is None:
            yield _place("", name, setting.hint)
        else:
            yield from (_place(name, one, inner.hint) for one, inner in settings_of(kind).items())


def _place(section: str, name: str, hint: object) -> Place:
    elsewhere = [word for note in notes(hint) if isinstance(note, CalledElsewhere) for word in note.names]
    return Place(section, name, former_name(hint), tuple(elsewhere))
