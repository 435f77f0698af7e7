"""`orchestrator export --push-to-hub`, against a stand-in for the Hub that huggingface_hub itself talks to."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import anyio
import huggingface_hub
import pytest
from huggingface_hub import constants

from orchestrator import Trainer
from orchestrator.__main__ import main
from orchestrator.deployment import hub
from tests.orchestrator.deployment.hub_server import TOKEN, HubServer, hub_server
from tests.orchestrator.training import small_config
from tests.paths import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow
DEADLINE = 200.0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    anyio.run(Trainer(small_config(epochs=3, run_dir=folder)).run)
    return folder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """The Hub of this process and of those that it starts."""
    with hub_server(monkeypatch, tmp_path) as server:
        yield server


def push(run: Path, repository: str, *more: str) -> int:
    return main(["export", str(run), "--to", "torch", "--push-to-hub", repository, *more])


def test_the_command_uploads_the_policy_its_card_and_its_curve(run: Path, server: HubServer) -> None:
    words = ["export", run, "--to", "torch", "--push-to-hub", "alice/cartpole", "--private"]
    command = [sys.executable, "-m", "orchestrator", *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False, cwd=PROJECT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"{server.address}/alice/cartpole"
    files = server.files["alice/cartpole"]
    assert server.visibility == {"alice/cartpole": "private"}
    (message,) = server.messages
    assert message.endswith("agent steps")
    assert files.keys() - {".gitattributes"} == {"README.md", "policy.pt2", "policy.pt2.md", "policy.pt2.svg"}
    assert files["policy.pt2"] == (run / "policy.pt2").read_bytes()
    card = files["README.md"].decode()
    assert card.endswith((run / "policy.pt2.md").read_text())
    data = huggingface_hub.ModelCard(card).data
    assert data.library_name == "async-rl-orchestrator"
    assert data.tags == ["reinforcement-learning", "torch", "CartPole-v1"]
    assert data.eval_results is not None
    (result_of,) = data.eval_results
    assert result_of.metric_type == "mean_reward"
    assert isinstance(result_of.metric_value, (int, float))


def test_uploading_again_replaces_what_is_there(run: Path, server: HubServer) -> None:
    assert push(run, "alice/again") == 0
    server.files["alice/again"]["policy.pt2.svg"] = b"old"
    assert push(run, "alice/again") == 0
    assert server.files["alice/again"]["policy.pt2.svg"] == (run / "policy.pt2.svg").read_bytes()
    assert server.visibility == {"alice/again": "public"}
    assert len(server.messages) == 2


def test_another_format_leaves_the_first_ones_card(run: Path, server: HubServer, tmp_path: Path) -> None:
    assert push(run, "alice/both") == 0
    card = (run / "policy.pt2.md").read_bytes()
    words = ["export", str(run), "--to", "onnx", "--output", str(tmp_path / "policy.onnx")]
    assert main([*words, "--push-to-hub", "alice/both"]) == 0
    files = server.files["alice/both"]
    assert files["policy.pt2.md"] == card
    assert files["README.md"].endswith((tmp_path / "policy.onnx.md").read_bytes())


def test_without_a_token_nothing_is_exported(
    run: Path, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    output = tmp_path / "policy.pt2"
    assert push(run, "alice/cartpole", "--output", str(output)) == 2
    assert "there is none: `hf auth login` saves a token, or set HF_TOKEN" in capsys.readouterr().err
    assert not output.exists()
    assert server.files == {}


def test_a_name_that_is_no_repository_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(run, "cartpole") == 2
    assert "expected: a repository on the Hub: user/name" in capsys.readouterr().err
    assert main(["export", str(run), "--to", "torch", "--private"]) == 2
    assert "only together with --push-to-hub" in capsys.readouterr().err


def test_what_the_hub_refuses_is_told_with_its_reason_and_a_cure(
    run: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(run, "bob/cartpole") == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "could not upload to bob/cartpole" in error
    assert "You don't have the rights to create a model under bob" in error
    assert "write permission for 'bob'" in error
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert push(run, "alice/cartpole") == 1
    assert "the token is not valid" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.broken = True
    assert push(run, "alice/cartpole") == 1
    assert "the server answered 500 (out of order)" in capsys.readouterr().err
    assert server.files == {}
    assert (run / "policy.pt2").is_file()


def test_where_the_network_is_away_this_is_said(
    run: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert push(run, "alice/cartpole") == 1
    assert "is the network there?" in capsys.readouterr().err


def test_without_the_extra_its_name_is_told(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    assert push(run, "alice/cartpole") == 2
    assert "pip install 'async-rl-orchestrator[hub]'" in capsys.readouterr().err
