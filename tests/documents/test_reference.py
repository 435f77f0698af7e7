"""Every public name has its place in the reference."""

from __future__ import annotations

import re

import losses
import orchestrator
import state
from tests.paths import PROJECT

REFERENCE = PROJECT / "docs" / "reference"


def test_every_public_name_is_in_the_reference_once_and_nothing_else() -> None:
    named = [
        name for page in REFERENCE.glob("*.md") for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    ]
    public = [f"{package.__name__}.{name}" for package in (orchestrator, losses, state) for name in dir(package)]
    assert sorted(named) == sorted(public)
