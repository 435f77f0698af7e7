"""Uploads an exported policy with its card to the Hugging Face Hub: the extra `hub`."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from orchestrator.deployment.export import ExtraMissing
from state.error import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_LOGIN = "`hf auth login` saves a token, or set HF_TOKEN to one"


class HubError(OrchestratorError, RuntimeError):
    """An upload to the Hub failed; the message says why, and what to do. The files are where they were written."""


class NotLoggedIn(OrchestratorError, ValueError):
    """There is no token for the Hub."""


def check_hub() -> None:
    """Raises ExtraMissing and NotLoggedIn, before any work is done."""
    if find_spec("huggingface_hub") is None:
        cure = "pip install 'async-rl-orchestrator[hub]'"
        raise ExtraMissing(f"to upload to the Hub, the extra `hub` must be installed (huggingface_hub): {cure}")
    if _hub().get_token() is None:
        raise NotLoggedIn(f"to upload to the Hub, a token with write permission is needed, and there is none: {_LOGIN}")


def push_to_hub(repository: str, files: Mapping[str, Path | bytes], message: str, *, private: bool = False) -> str:
    """Write `files`, by their names there, to the model `repository` ("user/name") in one commit; blocks.

    The repository is made if there is none, `private` or not. Returns its address. Raises HubError.
    """
    hub = _hub()
    operations = [
        hub.CommitOperationAdd(
            path_in_repo=name, path_or_fileobj=content if isinstance(content, bytes) else str(content)
        )
        for name, content in files.items()
    ]
    api = hub.HfApi()
    try:
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        api.create_commit(repository, operations, commit_message=message)
    except Exception as error:  # of its HTTP library too, which is another one in each of its versions
        raise HubError(f"could not upload to {repository} at {api.endpoint}: {_reason(error, repository)}") from error
    return str(address)


def _reason(error: Exception, repository: str) -> str:
    """What went wrong, and the cure."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = getattr(error, "server_message", None) or next(iter(str(error).strip().splitlines()), "") or repr(error)
    if status == 401:
        return f"the token is not valid ({said}): {_LOGIN}"
    if status in (403, 404):
        owner = repository.partition("/")[0]
        return f"the token may not write there ({said}): use one with write permission for {owner!r}, or another name"
    if status is None:
        return f"{type(error).__name__}: {said}; is the network there? The same command tries again"
    return f"the server answered {status} ({said})"


def _hub() -> Any:
    return import_module("huggingface_hub")  # which most have not installed
