"""The code that the documents show."""

from __future__ import annotations

import re

from tests.paths import PROJECT


def text_of(name: str) -> str:
    return (PROJECT / "docs" / name).read_text()


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
