"""What a checkpoint says about itself: its facts, and the size and hash of each of its files."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any, cast

from state.error import OrchestratorError

FORMAT_VERSION = 2
MANIFEST, POLICY = "manifest.json", "policy.safetensors"
SCORES = "scores.json"
"""Beside the manifest, which never changes: metrics of the checkpoint's policy that came after it was committed."""

NAME_ANOTHER = (
    "name another checkpoint: `orchestrator checkpoints verify` finds those of a run that are whole, and of a run"
    " itself the newest of them is taken"
)
"""What to do about a checkpoint that is damaged."""

_OURS = frozenset({"format_version", "attempt", "parent", "created", "files", "folder", "checksum"})
_PLAIN_NAME = re.compile(r"[\w-][\w.+-]*")


class CheckpointError(OrchestratorError, ValueError):
    """A checkpoint is missing, damaged, of a kind that this version does not read, or cannot be written."""


class CheckpointDamaged(CheckpointError):
    """What is there is not what was committed."""


class CheckpointTooNew(CheckpointError):
    """Written by a later release, in a format that this one does not know."""


def is_plain_name(name: object) -> bool:
    """Whether a name can only mean something inside the folder it is used in."""
    return isinstance(name, str) and _PLAIN_NAME.fullmatch(name) is not None


def make_manifest(
    facts: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Any]],
    *,
    epoch: int,
    attempt: str,
    parent: str | None,
) -> bytes:
    """The content of a manifest; `files` has `bytes` and `sha256` by name.

    Metrics that are not finite become null, since JSON has no word for them. Raises CheckpointError for facts that
    JSON cannot say, and for those under a name that is taken.
    """
    taken = sorted(_OURS & facts.keys())
    if taken:
        raise CheckpointError(f"facts may not be called {', '.join(taken)}: these names are the manifest's own")
    manifest: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "attempt": attempt,
        "parent": parent,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **facts,
        "epoch": epoch,
        "metrics": {name: _finite(value) for name, value in (facts.get("metrics") or {}).items()},
        "files": files,
    }
    try:
        manifest["checksum"] = _checksum(manifest)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the facts of the checkpoint of epoch {epoch} are not JSON: {error}") from error
    return json.dumps(manifest, indent=2, allow_nan=False).encode()


def parse_manifest(content: bytes, where: object) -> dict[str, Any]:
    """The manifest. Raises CheckpointDamaged, and CheckpointTooNew for a later release's; both name `where` it was."""
    try:
        raw: Any = json.loads(content)
        version = raw["format_version"]
        if not isinstance(version, int) or version < FORMAT_VERSION:
            raise ValueError(f"format version {version!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointDamaged(f"{where} is damaged: {error!r}") from error
    if version > FORMAT_VERSION:
        raise CheckpointTooNew(
            f"{where} has format version {version}; this release reads {FORMAT_VERSION}: use the release that "
            "wrote it, or a later one"
        )
    manifest = cast("dict[str, Any]", raw)
    try:
        _check(manifest, where)
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointDamaged(f"{where} is damaged: {error!r}") from error
    return manifest


def make_scores(manifest: Mapping[str, Any], metrics: Mapping[str, Any]) -> bytes:
    """The content of the file of scores that came late; `metrics` as in `make_manifest`."""
    finite = {name: _finite(value) for name, value in metrics.items()}
    return json.dumps({"attempt": manifest["attempt"], "metrics": finite}, indent=2, allow_nan=False).encode()


def parse_scores(content: bytes, manifest: Mapping[str, Any], where: object) -> dict[str, Any]:
    """The metrics in such a file. Raises CheckpointDamaged where it is no such file, or another checkpoint's."""
    try:
        scores: Any = json.loads(content)
        metrics: Any = scores["metrics"]
        if scores["attempt"] != manifest["attempt"] or not isinstance(metrics, dict):
            raise ValueError("it is not of this checkpoint")
        for name, value in cast("dict[str, Any]", metrics).items():
            if value is not None and type(value) not in (int, float):
                raise ValueError(f"the metric {name!r} is {value!r}, not a number")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointDamaged(f"{where} is damaged: {error!r}") from error
    return cast("dict[str, Any]", metrics)


def _check(manifest: Mapping[str, Any], where: object) -> None:
    if manifest["checksum"] != _checksum(manifest):
        raise CheckpointDamaged(f"{where} is damaged: its checksum does not fit its content")
    if not isinstance(manifest["epoch"], int):
        raise CheckpointDamaged(f"{where} is damaged: epoch {manifest['epoch']!r}")
    for name in (*manifest["files"], manifest["attempt"], manifest.get("folder", "-")):
        if not is_plain_name(name) or name in (MANIFEST, SCORES):
            raise CheckpointDamaged(f"{where} names a file outside of the checkpoint: {name!r}")
    for name, described in manifest["files"].items():
        if not isinstance(described["bytes"], int) or not isinstance(described["sha256"], str):
            raise CheckpointDamaged(f"{where} is damaged: {name} is described by {described!r}")


def in_folder(manifest: Mapping[str, Any], folder: str | None) -> bytes:
    """The manifest of a copy whose files are in `folder` next to it (none: in its own folder)."""
    changed = {name: value for name, value in manifest.items() if name not in ("folder", "checksum")}
    if folder is not None:
        changed["folder"] = folder
    changed["checksum"] = _checksum(changed)
    return json.dumps(changed, indent=2, allow_nan=False).encode()


def _checksum(manifest: Mapping[str, Any]) -> str:
    """Of all that the manifest says, however it is laid out."""
    rest = {name: value for name, value in manifest.items() if name != "checksum"}
    said = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(said.encode()).hexdigest()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
