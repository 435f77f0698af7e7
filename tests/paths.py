"""Where the project lies, for tests that read its files or start programs in it: one place, so that tests may move."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
