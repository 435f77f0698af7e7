"""Captured states of copies, divided and joined anew: for a run that is resumed with other environment workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict, cast

import numpy as np

from orchestrator.config.paths import PATH
from orchestrator.environments.capture import CannotRestore
from orchestrator.environments.object_nodes import AT, Node, digest_of

_GRAPH = ("nodes", "copies", "variables", "constants", "surroundings", "code", "python")
"""What `EnvironmentState.capture` gives; all else is of the vector environment, with an entry for each row."""
_CURE = f"set {PATH.collection.environment_workers} and {PATH.collection.environment_groups} as they were"
State = Mapping[str, Any]


class Piece(TypedDict):
    """The state of neighbouring copies, `games` from the `first` of the collector's."""

    first: int
    games: int
    state: State


def pieces_of(state: Mapping[str, object], games: int) -> list[Piece]:
    """What the state of a collector's `games` consists of."""
    if "pieces" in state:
        return cast("list[Piece]", state["pieces"])
    return [Piece(first=0, games=games, state=state)]


def state_of(pieces: Sequence[Piece], wanted: range) -> State:
    """The state of the `wanted` copies alone. Raises CannotRestore where it can't be had from the pieces."""
    parts: list[State] = []
    for piece in sorted(pieces, key=lambda piece: piece["first"]):
        first, games = piece["first"], piece["games"]
        if (first, games) == (wanted.start, len(wanted)):
            return piece["state"]
        own = range(max(first, wanted.start) - first, min(first + games, wanted.stop) - first)
        if own:
            parts.append(_part(piece["state"], games, own))
    return parts[0] if len(parts) == 1 else _joined(parts)


def _part(state: State, games: int, own: range) -> State:
    if len(state.get("copies", ())) != games:
        raise CannotRestore(
            f"the saved state is of {games} copies that one vectorized form steps, which can't be divided otherwise;"
            f" {_CURE}"
        )
    rest = {
        name: _entries(value, slice(own.start, own.stop), games) for name, value in state.items() if name not in _GRAPH
    }
    kept = _Nodes()
    kept.add(state["nodes"], [*state["variables"].values(), *state["copies"][own.start : own.stop]])
    return {
        **state,
        **rest,
        "nodes": kept.nodes,
        "variables": {name: kept.at(value) for name, value in state["variables"].items()},
        "copies": [kept.at(value) for value in state["copies"][own.start : own.stop]],
    }


def _entries(value: Any, games: slice, of: int) -> Any:
    """Those of the `games`, each of which has equally many."""
    if not isinstance(value, np.ndarray):
        return value
    each = len(value) // of
    return value[games.start * each : games.stop * each]


def _joined(parts: Sequence[State]) -> State:
    nodes: list[Node] = []
    copies: list[Any] = []
    variables: dict[str, Any] = {}
    _check_variables(parts)
    for part in parts:
        kept = _Nodes(nodes)
        roots = part["copies"] if part is not parts[0] else [*part["variables"].values(), *part["copies"]]
        kept.add(part["nodes"], roots)
        copies += [kept.at(value) for value in part["copies"]]
        if part is parts[0]:
            variables = {name: kept.at(value) for name, value in part["variables"].items()}
    extra = {
        name: np.concatenate([part[name] for part in parts]) if isinstance(value, np.ndarray) else value
        for name, value in parts[0].items()
        if name not in _GRAPH
    }
    return {
        **extra,
        "nodes": nodes,
        "copies": copies,
        "variables": variables,
        "python": parts[0]["python"],
        **{name: _agreed(parts, name) for name in ("constants", "surroundings", "code")},
    }


def _agreed(parts: Sequence[State], name: str) -> dict[str, Any]:
    agreed = dict(parts[0][name])
    for part in parts[1:]:
        agreed = {key: value for key, value in agreed.items() if part[name].get(key) == value}
    return agreed


def _check_variables(parts: Sequence[State]) -> None:
    """Variables that have changed must have changed alike in all processes. Raises CannotRestore."""
    found = [{name: _digest(part, value) for name, value in part["variables"].items()} for part in parts]
    for part, own in zip(parts, found, strict=True):
        names = sorted(name for name in own.keys() | found[0].keys() if own.get(name) != found[0].get(name))
        if not names and _reached(part["nodes"], part["variables"].values()) & _reached(part["nodes"], part["copies"]):
            names = sorted(own)
        if names:
            raise CannotRestore(
                f"{names[0]} was shared by the copies of each environment worker, and is another one in each; {_CURE}"
            )


def _digest(part: State, value: Any) -> str:
    kept = _Nodes()
    kept.add(part["nodes"], [value])
    return digest_of([{"value": kept.at(value)}, *kept.nodes])


class _Nodes:
    """Nodes of a table that are kept, at the end of `nodes`, with the references among them."""

    def __init__(self, nodes: list[Node] | None = None) -> None:
        self.nodes: list[Node] = [] if nodes is None else nodes
        self._places: dict[int, int] = {}

    def add(self, table: Sequence[Node], roots: Iterable[Any]) -> None:
        """Keep what can be reached from `roots`."""
        kept = sorted(_reached(table, roots))
        self._places = {index: len(self.nodes) + place for place, index in enumerate(kept)}
        self.nodes += [_replaced(table[index], self._places.__getitem__) for index in kept]

    def at(self, value: Any) -> Any:
        """The reference as it is among the kept."""
        return _replaced(value, self._places.__getitem__)


def _reached(table: Sequence[Node], roots: Iterable[Any]) -> set[int]:
    found: set[int] = set()
    pending: list[int] = []
    _replaced(list(roots), pending.append)
    while pending:
        index = pending.pop()
        if index not in found:
            found.add(index)
            _replaced(table[index], pending.append)
    return found


def _replaced(value: Any, place: Callable[[int], Any]) -> Any:
    """The same with what `place` gives in the references."""
    if isinstance(value, dict):
        of = cast("dict[str, Any]", value)
        if of.keys() == {AT}:
            return {AT: place(of[AT])}
        return {key: _replaced(part, place) for key, part in of.items()}
    return [_replaced(part, place) for part in cast("list[Any]", value)] if isinstance(value, list) else value
