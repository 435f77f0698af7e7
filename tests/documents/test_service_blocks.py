"""The services of the documents, started as the programs that they are, and asked for what they offer."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.documents.test_python_blocks import SERVICES
from tests.documents.test_tutorial import DEADLINE, Reader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow


def test_all_services_of_the_documents_are_known() -> None:
    assert [block.page for block in SERVICES] == ["docs/embedding.md"]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[httpx.Client]:
    reader = Reader(tmp_path)
    (tmp_path / "service.py").write_text(SERVICES[0].text.replace("8000", reader.port))
    reader.give("python service.py &")
    with httpx.Client(base_url=f"http://127.0.0.1:{reader.port}", timeout=DEADLINE) as client:
        reader.request("GET", f"http://127.0.0.1:{reader.port}/openapi.json")
        try:
            yield client
        finally:
            assert reader.background is not None
            reader.background.send_signal(signal.SIGTERM)
            errors = reader.background.communicate(timeout=DEADLINE)[1]
    assert reader.background.returncode in (0, -signal.SIGTERM)
    assert "Traceback" not in errors


def wait_for(service: httpx.Client, *statuses: str) -> dict[str, Any]:
    deadline = time.monotonic() + DEADLINE
    while (found := service.get("/run").raise_for_status().json())["status"] not in statuses:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def test_the_fastapi_service_starts_watches_and_stops_one_run_at_a_time(service: httpx.Client) -> None:
    assert service.get("/run").status_code == 404
    assert service.post("/run/stop").status_code == 404
    refused = service.post("/run", json={"learning": {"discont": 0.9}})
    assert refused.status_code == 422
    assert "discount" in refused.text
    assert service.post("/run", json={"environment": "CartPol-v1"}).status_code == 201
    assert "CartPole-v1" in wait_for(service, "failed")["error"]
    assert service.post("/run", json={"total_agent_steps": 10**9}).status_code == 201
    assert service.post("/run", json={}).status_code == 409
    assert wait_for(service, "running", "ended")["epoch"] >= 0
    assert service.post("/run/stop").status_code == 202
    assert wait_for(service, "ended")["status"] == "ended"
    assert service.post("/run", json={"total_agent_steps": 10**9}).status_code == 201, "and again"
