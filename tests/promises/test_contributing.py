"""What CONTRIBUTING.md names."""

from __future__ import annotations

import re

from orchestrator.config import annotations, settings
from orchestrator.environments import registry
from tests.paths import PROJECT

TEXT = (PROJECT / "CONTRIBUTING.md").read_text()


def test_contributors_are_sent_only_to_what_is_there() -> None:
    paths = re.findall(r"`((?:orchestrator|losses|state|scripts|tests)/[\w./]*)`", TEXT)
    paths += re.findall(r"\]\(([\w/]+\.md)\)", TEXT)
    assert len(paths) > 10
    assert [path for path in paths if not (PROJECT / path).exists() and "NAME" not in path] == []
    constants = re.findall(r"`(_?[A-Z]{4,}\w*)`", TEXT)
    assert {"LOSSES", "NETWORKS", "_EXTRAS"} <= set(constants)
    assert [name for name in constants if not (hasattr(settings, name) or hasattr(registry, name))] == []
    assert hasattr(annotations, "Formerly")
