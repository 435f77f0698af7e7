"""Checks across settings: each declares which it reads, and is skipped where one of these is wrong already."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from orchestrator.config.error import Problem

_Check = TypeVar("_Check", bound=Callable[..., "Iterable[Problem]"])

READS: dict[Callable[..., Any], tuple[str, ...]] = {}
"""By check: the paths of the settings, or sections, that it reads."""


def reads(*settings: object) -> Callable[[_Check], _Check]:
    """Declares which settings, such as `PATH.learning.clip`, or sections, such as `PATH.learning`, a check reads."""

    def declare(check: _Check) -> _Check:
        READS[check] = tuple(map(str, settings))
        return check

    return declare


class Problems(list["Problem"]):
    """What is wrong with a configuration: at first with single settings, then what checks across them find."""

    def __init__(self, of_settings: Iterable[Problem]) -> None:
        super().__init__(of_settings)
        self._wrong = [problem.field for problem in self]

    def check(self, check: Callable[..., Iterable[Problem]], *arguments: object) -> None:
        """Adds what a check finds, unless a setting that it reads is wrong; about those that are, it adds nothing."""
        if not any(map(self._is_wrong, READS[check])):
            self.extend(problem for problem in check(*arguments) if not self._is_wrong(problem.field))

    def _is_wrong(self, path: str) -> bool:
        return any(_within(path, wrong) or _within(wrong, path) for wrong in self._wrong)


def _within(path: str, other: str) -> bool:
    return path == other or path.startswith((f"{other}.", f"{other}["))
